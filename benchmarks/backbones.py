"""What each backbone costs: its parameters, and the time of the flagship's network with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from benchmarks import problem as problem_lib
from benchmarks import turns
from benchmarks.problem import Problem
from mtl_jax import tasks
from mtl_jax.models import multi_task


def measure(problems: Mapping[str, Problem], *, repeats: int) -> list[dict[str, Any]]:
    """Times problems with every backbone in turn.

    Args:
        problems: {name of the figure: problem}.
        repeats: timed computations of each.

    Returns:
        A row for each backbone: its parameters, median and minimum ms of each problem.
    """
    rows = [{"backbone": name, "params": _parameters(name)} for name in multi_task.BACKBONES]
    for figure, problem in problems.items():
        backbone_problems = [dataclasses.replace(problem, backbone=row["backbone"]) for row in rows]
        for row, timing in zip(rows, turns.run(backbone_problems, repeats=repeats), strict=True):
            row |= {f"{figure}_ms": 1e3 * timing.median, f"{figure}_min_ms": 1e3 * min(timing.seconds)}
    return rows


def _parameters(backbone: str) -> int:
    """Those of the backbone alone."""
    records = tasks.build(problem_lib.task_settings(Problem("jax", "infer")))
    model = multi_task.build({"backbone": backbone}, records)
    shapes = jax.eval_shape(lambda key: multi_task.init_variables(model, key=key), jax.random.key(0))
    return multi_task.parameter_count(shapes["params"])["backbone"]
