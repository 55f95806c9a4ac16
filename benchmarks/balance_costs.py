"""Cost of each balancing method compared with the plain sum: all of a setting's steps in one process, in turns."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from benchmarks import jax_side
from benchmarks import problem as problem_lib
from benchmarks.problem import Problem
from benchmarks.turns import timed
from mtl_jax import tasks
from mtl_jax.config.stage_settings import StageSettings
from mtl_jax.models import multi_task
from mtl_jax.models.ownership import split_private
from mtl_jax.training import task_balancing

# Where tasks share a stream, methods of a kind differ in their update alone, and one of each kind shows the rest.
OF_EACH_KIND = ("sum", "uncertainty", "pcgrad", "mgda", "nash_mtl", "upgrad")
TASK_COUNTS = (2, 4, 8, 16)
WARM_UP = 2

Rows = list[dict[str, Any]]


def measure(base_problem: Problem, methods: Sequence[str], *, repeats: int) -> Rows:
    """Measures every setting.

    Args:
        base_problem: the step of the plain sum; its batch and image size are every setting's.
        methods: to be compared with the sum.
        repeats: timed steps of each method.

    Returns:
        A row for each setting and method: times, the program's memory, and both as ratios to the sum's.
    """
    method_names = tuple(dict.fromkeys(["sum", *methods]))
    rows = [
        _turns(setting, problem, names, repeats) for setting, problem, names in settings(base_problem, method_names)
    ]
    return [row for turn_rows in rows for row in turn_rows]


def settings(base_problem: Problem, methods: tuple[str, ...]) -> list[tuple[str, Problem, tuple[str, ...]]]:
    """Names the settings, the plain sum's problem in each, and the methods that are measured there."""
    kinds = tuple(name for name in methods if name in OF_EACH_KIND)
    return [
        ("one stream a task", dataclasses.replace(base_problem, disjoint=True), methods),
        ("one stream", base_problem, kinds),
        ("one stream, at the features", dataclasses.replace(base_problem, gradient_space="features"), kinds),
        *(
            (f"{count} tasks, one stream", dataclasses.replace(base_problem, classifiers=count), kinds)
            for count in TASK_COUNTS
        ),
    ]


def _turns(setting: str, base_problem: Problem, methods: Sequence[str], repeats: int) -> Rows:
    """Times the methods one after another, over and over, so that the machine's noise meets all."""
    problems = [dataclasses.replace(base_problem, balance=name) for name in methods]
    steps = [jax_side.build(problem) for problem in problems]
    for step in steps:
        for _ in range(WARM_UP):
            step.compute()
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(repeats):
        for times, step in zip(seconds, steps, strict=True):
            times.append(timed(step.compute))
    rows, least = [], min(seconds[0])
    for problem, step, times in zip(problems, steps, seconds, strict=True):
        update = _update_seconds(problem, repeats)
        rows.append(
            {
                "setting": setting,
                "balance": problem.balance,
                "median_ms": 1e3 * statistics.median(times),
                "min_ms": 1e3 * min(times),
                # Pair by pair, as the machine's speed drifts over minutes.
                "ratio_to_sum": statistics.median(
                    seconds_taken / base for seconds_taken, base in zip(times, seconds[0], strict=True)
                ),
                "ratio_of_minima": min(times) / least,
                "memory_mb": step.memory_mb,
                "memory_ratio": step.memory_mb / steps[0].memory_mb,
                "update_ms": 1e3 * update,
                "update_share": update / statistics.median(times),
            }
        )
    return rows


def _update_seconds(problem: Problem, repeats: int) -> float:
    """Seconds of the method alone, Gramian and solver included, on random gradients of the shared parameters."""
    names = tuple(problem_lib.task_settings(problem))
    shared = _shared_params(problem.classifiers)
    generator = np.random.default_rng(problem.seed)
    task_grads = jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(size=(len(names), *leaf.shape)), jnp.float32), shared
    )
    settings = StageSettings(("all",), balance=problem.balance)
    tx = task_balancing.method(
        settings, tasks=len(names), location="the benchmark"
    )  # with the state that training gives it
    update = jax.jit(tx.update)
    losses, holder = jnp.ones(len(names)), {"state": tx.init(shared)}

    def compute() -> None:
        combined, holder["state"] = update(task_grads, holder["state"], task_losses=losses)
        jax.block_until_ready(combined)

    for _ in range(WARM_UP):
        compute()
    return statistics.median(timed(compute) for _ in range(repeats))


@functools.cache
def _shared_params(classifiers: int) -> PyTree:
    problem = Problem("jax", "step", classifiers=classifiers)
    records = tasks.build(problem_lib.task_settings(problem))
    params = multi_task.init_variables(multi_task.build({}, records), key=jax.random.key(0))["params"]
    return split_private(params, tuple(records))[0]
