"""How far a network's outputs have moved from those of an earlier version, on validation images."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from mtl_jax import experiment
from mtl_jax.models import multi_task
from mtl_jax.tasks.base import Task


def largest(parts: experiment.Experiment, before: PyTree, after: PyTree, tasks: Iterable[str]) -> dict[str, float]:
    """Returns each task's largest absolute difference of a raw output; 0.0 where no bit has changed.

    Args:
        parts: of the experiment, whose network both variables are of.
        before: variables of the earlier version.
        after: variables of now.
        tasks: to compare, each on the validation images that it is measured on.
    """
    raw = functools.partial(jax.jit(_raw, static_argnums=(0, 3)), parts.model)
    changes: dict[str, float] = {}
    for stream, asked in experiment.measured_streams(parts, tasks).items():
        for task, change in _of_stream(raw, experiment.eval_batches(parts, stream), before, after, asked).items():
            changes[task] = max(changes.get(task, 0.0), change)
    return changes


def _raw(model: Any, variables: PyTree, image: Array, names: tuple[str, ...]) -> dict[str, Array]:
    return multi_task.eval_raw(model, variables, image, tasks=names)[0]


def _of_stream(
    raw: Any, batches: Iterable[Any], before: PyTree, after: PyTree, tasks: Mapping[str, Task]
) -> dict[str, float]:
    changes = dict.fromkeys(tasks, 0.0)
    for batch in batches:
        old, new = (jax.device_get(raw(variables, batch.image, tuple(tasks))) for variables in (before, after))
        for task in tasks:
            if not np.array_equal(old[task], new[task], equal_nan=True):
                changes[task] = max(changes[task], float(np.abs(old[task] - new[task]).max()))
    return changes
