"""Cost and savings of sharing: time and parameters of each wiring of the flagship, next to what runs reached."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import flagship
from mtl_jax import experiment
from mtl_jax.errors import UserError
from mtl_jax.evaluation import evaluate
from mtl_jax.models import dependence
from mtl_jax.report import comparison
from mtl_jax.report.comparison_figures import scatters_svg

# Variant of the flagship's page, and what else its network has.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("plain", {}),
    "shared": ("shared", {}),
    "branched at stage_3": ("branched", {"share_until": 16}),
    "branched": ("branched", {}),
    "branched at stage_1": ("branched", {"share_until": 4}),
    "independent": ("plain", {"sharing": "independent", "neck_channels": 96, "head_channels": 96}),
}
COSTS = {"shared_percent": "shared parameters, %", "params": "parameters", "all_ms": "all tasks, ms"}
LARGEST_DROP = "largest_drop_percent"

Rows = list[dict[str, Any]]


def measure(
    data_root: Path, *, image_size: int, repeats: int, runs: Mapping[str, Sequence[Path]] | None = None
) -> Rows:
    """Returns, for each wiring, its parameters and the ms of one image: each task alone, and all of them.

    The ratio is that of all tasks to the slowest task alone, which is what one single-task network of the same layers
    takes.

    Args:
        data_root: folder of datasets.
        image_size: px.
        repeats: turns, after a first one that compiles.
        runs: name of a wiring -> work directories of finished trainings, whose mean figures are listed with its costs;
            of "independent", those of networks for one task each.
    """
    scores = {name: _reached(name, folders) for name, folders in (runs or {}).items()}
    networks = {name: flagship.build(data_root, variant, **options) for name, (variant, options) in NETWORKS.items()}
    times, rows = _times(networks, image_size=image_size, repeats=repeats), []
    for name, setup in networks.items():
        counts = dependence.params_by_owner(setup.model)
        costs = {"params": sum(counts.values()), "shared_percent": dependence.shared_percent(counts)}
        ratio = times[name]["all_ms"] / max(times[name][f"{task}_ms"] for task in setup.tasks)
        rows.append({"network": name, **costs, **times[name], "ratio": ratio, **scores.get(name, {})})
    return rows


def _times(
    networks: Mapping[str, experiment.Experiment], *, image_size: int, repeats: int
) -> dict[str, dict[str, float]]:
    """Median ms of all tasks and of each; the networks take turns, so that a busy minute falls on all of them."""
    times_by_network: dict[str, dict[str, list[float]]] = {name: {} for name in networks}
    programs = {
        name: (
            evaluate.make_predict(setup.model, setup.tasks),
            experiment.init_variables(setup, key=jax.random.key(0), pretrained_path=""),
            {"all": tuple(setup.tasks), **{task: (task,) for task in setup.tasks}},
        )
        for name, setup in networks.items()
    }
    for turn in range(repeats + 1):
        for name, (predict, variables, task_names) in programs.items():
            for label, tasks in task_names.items():
                milliseconds = evaluate.latency_ms(predict, variables, tasks, image_size=image_size, repeats=3)
                if turn:  # the first one compiles
                    times_by_network[name].setdefault(f"{label}_ms", []).append(milliseconds)
    return {
        name: {label: float(np.median(durations)) for label, durations in times.items()}
        for name, times in times_by_network.items()
    }


def _reached(name: str, folders: Sequence[Path]) -> dict[str, float]:
    """Mean of each task's figure over the runs that have the task, and the largest of the tasks' mean drops."""
    if name not in NETWORKS:
        raise UserError(f"--runs: expected some of {', '.join(NETWORKS)}, found {name}")
    results = [comparison.read(name, number, folder) for number, folder in enumerate(folders)]
    unfinished = [str(folder) for folder, run in zip(folders, results, strict=True) if run is None]
    if unfinished:
        raise UserError(f"--runs: expected finished trainings, found no contract.json in {', '.join(unfinished)}")
    figures = [comparison.figures(run) for run in results if run]
    tasks = {task: entry["metric"] for run in results if run for task, entry in run.contract["tasks"].items()}
    means = {f"{task}_{metric}": _mean(figures, f"{task}_{metric}") for task, metric in tasks.items()}
    return means | {LARGEST_DROP: max(_mean(figures, f"{task}_drop_percent") for task in tasks)}


def _mean(figures: Sequence[Mapping[str, float | None]], name: str) -> float:
    """Mean of a figure over the runs that have its task."""
    return statistics.fmean(run[name] or 0.0 for run in figures if name in run)


def frontier_svg(rows: Rows) -> str:
    """What each network reached and lost, against what it shares, its parameters and its time: an image by itself.

    Args:
        rows: from `measure`, of which those without runs are left out.

    Raises:
        UserError: no row has runs.
    """
    measured_rows = {row["network"]: row for row in rows if LARGEST_DROP in row}
    if not measured_rows:
        raise UserError(
            "--svg: expected scores of finished trainings, found none; name them with --runs shared=DIR,plain=DIR"
        )
    first, costs = next(iter(measured_rows.values())), {"network", "ratio", *COSTS}
    return scatters_svg(
        [
            (
                row_scores.replace("_", " "),
                [(title, _points(measured_rows, cost, row_scores)) for cost, title in COSTS.items()],
            )
            for row_scores in first
            if row_scores not in costs and not row_scores.endswith("_ms")
        ]
    )


def _points(rows: Mapping[str, Mapping[str, Any]], x: str, y: str) -> dict[str, tuple[float, float]]:
    return {name: (float(row[x]), float(row[y])) for name, row in rows.items()}
