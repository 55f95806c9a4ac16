"""Comparison of configurations over seeds: scores, drops and costs, as tables, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mtl_jax.evaluation import contract_table
from mtl_jax.evaluation.contract import task_histories
from mtl_jax.report.balance_section import Conflict, conflicts
from mtl_jax.tasks import TITLES
from mtl_jax.workdir import metrics_log
from mtl_jax.workdir.files import read_json

COSTS = {"params": "parameters", "latency_ms": "latency, ms", "train_seconds": "training, s", "step_ms": "step, ms"}
COSTS |= {"peak_memory_mb": "peak memory, MB", "gigaflops": "GFLOP an image"}
History = dict[str, list[int | float]]  # {"step", "value"}
CURVES = ("loss", "task_weight", "gradient_norm")  # endings of the names of what is logged in training
DELTA_M = "delta_m_percent"  # against single-task runs, where every task has one


class Result(NamedTuple):
    """Result of one finished run."""

    variant: str
    seed: int
    contract: Mapping[str, Any]  # the tree of contract.json
    step_ms: float | None  # median over the logged steps of all stages
    conflicts: Mapping[tuple[str, str], Conflict]  # of the gradients of two tasks, where they were logged
    history: Mapping[str, History]  # by "stage/split/task/name": the steps and values of `CURVES`


def read(variant: str, seed: int, workdir: Path) -> Result | None:
    """Reads a run's work directory; None where the run is not finished.

    Raises:
        UserError: one of its files is damaged.
    """
    contract = read_json(workdir / "contract.json")
    if contract is None:
        return None
    log = workdir / metrics_log.FILE_NAME
    events = metrics_log.read(log) if log.is_file() else []
    steps = [event["value"] for event in events if event["name"] == "step_ms" and event["value"] is not None]
    finite = [event for event in events if event["value"] is not None]
    step_ms = statistics.median(steps) if steps else None
    return Result(variant, seed, contract, step_ms, conflicts(finite), history(finite))


def history(events: Sequence[Mapping[str, Any]]) -> dict[str, History]:
    """Returns the course of every loss, validation figure, task weight and gradient norm of a run.

    Args:
        events: of a run, with finite values.

    Returns:
        By "stage/split/task/name": the steps and the values.
    """
    curves: dict[str, History] = {}
    for event in events:
        if event["split"] == "val" or event["name"].endswith(CURVES):
            name = "/".join((event["stage"], event["split"], event["task"] or "all", event["name"]))
            curve = curves.setdefault(name, {"step": [], "value": []})
            curve["step"].append(event["step"])
            curve["value"].append(event["value"])
    return curves


def as_history(results: Sequence[Result]) -> str:
    """The course of training of every run as JSON: variant -> seed -> `history`."""
    tree = {variant: {str(run.seed): run.history for run in runs} for variant, runs in by_variant(results).items()}
    return json.dumps(tree) + "\n"


def figures(result: Result) -> dict[str, float | None]:
    """Every figure of a run by its column: "seg_miou", "seg_drop_percent", and the keys of `COSTS`."""
    values: dict[str, float | None] = {}
    for task, entry in result.contract["tasks"].items():
        values |= {f"{task}_{entry['metric']}": entry["final"], f"{task}_drop_percent": entry["drop_percent"]}
    values[DELTA_M] = result.contract.get(DELTA_M)
    budgets = result.contract["budgets"]
    costs = {cost: budgets[cost]["value"] if cost in budgets else None for cost in COSTS}
    values |= costs | {"step_ms": result.step_ms}
    return {name: None if value is None else float(value) for name, value in values.items()}


def by_variant(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Groups results, keeping the order of first appearance."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.variant, []).append(result)
    return groups


def columns(results: Sequence[Result]) -> list[str]:
    """Returns the columns of `figures` of all results: accuracies and drops of every task, delta_m, then costs."""
    figures_by_run = [figures(result) for result in results]
    names = [name for run_figures in figures_by_run for name in run_figures if name not in COSTS and name != DELTA_M]
    gain = [DELTA_M] if any(run_figures[DELTA_M] is not None for run_figures in figures_by_run) else []
    return [*dict.fromkeys(names), *gain, *COSTS]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean and the sample standard deviation, None of fewer than two values."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def as_csv(results: Sequence[Result]) -> str:
    """One line for each run, in full precision."""
    text = io.StringIO()
    names = columns(results)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["variant", "seed", "passed", *names])
    for result in results:
        run_figures = figures(result)
        cells = ["" if run_figures.get(name) is None else run_figures[name] for name in names]
        writer.writerow([result.variant, result.seed, result.contract["passed"], *cells])
    return text.getvalue()


def table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: one row for each variant, mean ± standard deviation over its seeds."""
    names = columns(results)
    rows = []
    for variant, runs in by_variant(results).items():
        figures_by_run = [figures(run) for run in runs]
        cells = [_cell([run_figures.get(name) for run_figures in figures_by_run], name) for name in names]
        kept_count = sum(bool(run.contract["passed"]) for run in runs)
        rows.append([variant, str(len(runs)), *cells, f"{kept_count} of {len(runs)}"])
    return ["variant", "seeds", *map(heading, names), "contract kept"], rows


def heading(name: str) -> str:
    """Returns the head of a column: what people read for a figure, of which task."""
    if name == DELTA_M:
        return "delta_m, %"
    for figure in sorted(TITLES, key=len, reverse=True):
        if name.endswith(f"_{figure}"):
            return f"{name.removesuffix(f'_{figure}')} {TITLES[figure]}"
    return COSTS.get(name, name.replace("_drop_percent", " drop, %"))


def _cell(values: Sequence[float | None], name: str) -> str:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return "-"
    mean, spread = mean_and_spread(finite)
    missing = f" ({len(finite)} of {len(values)})" if len(finite) < len(values) else ""
    if name.endswith("_percent"):
        mean = 0.0 if mean == 0 else mean  # no "-0.00"
        return f"{mean:.2f}" + (f" ± {spread:.2f}" if spread is not None else "") + missing
    text = contract_table.figure(round(mean, 4) if abs(mean) < 1000 else round(mean))
    return text + (f" ± {spread:.2g}" if spread else "") + missing


def matrix(runs: Sequence[Result]) -> tuple[list[str], list[tuple[str, list[float | None]]]]:
    """The stage x task matrix of one variant, averaged over its seeds.

    Returns:
        Tasks, and by stage the mean of each task's metric after it; None where it was not evaluated.
    """
    tasks = runs[0].contract["tasks"]
    judged = {task: (entry["metric"], entry["higher_is_better"]) for task, entry in tasks.items()}
    histories = [task_histories(run.contract["stages"], judged) for run in runs]
    rows = []
    for index, stage in enumerate(runs[0].contract["stages"]):
        rows.append((stage["name"], [_mean_at(index, [history[task] for history in histories]) for task in tasks]))
    return list(tasks), rows


def _mean_at(index: int, courses: Sequence[Sequence[float | None]]) -> float | None:
    """The mean of what courses have at a place; None where none has anything."""
    values = [course[index] for course in courses if index < len(course)]
    finite = [value for value in values if value is not None]
    return statistics.fmean(finite) if finite else None


def as_markdown(results: Sequence[Result]) -> str:
    """The table, and the stage x task matrix of every variant."""
    sections = [_markdown_table(*table(results))]
    for variant, runs in by_variant(results).items():
        tasks, rows = matrix(runs)
        cells = [[f"after {stage}", *map(contract_table.figure, values)] for stage, values in rows]
        sections.append(f"**{variant}**\n\n" + _markdown_table(["", *tasks], cells))
    return "\n".join(sections)


def _markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *("---:" for _ in heads[1:])], *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
