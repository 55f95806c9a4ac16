"""How far a network's outputs have moved from those of an earlier version, on validation images."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from mtl_jax import experiment
from mtl_jax.models import multi_task


def largest(
    setup: experiment.Experiment, before: PyTree, after: PyTree, tasks: Iterable[str], *, stages: Collection[str]
) -> dict[str, float]:
    """Returns each task's largest absolute difference of a raw output; 0.0 where no bit has changed.

    Args:
        setup: of the experiment, whose network both variables are of.
        before: variables of the earlier version.
        after: variables of now.
        tasks: to compare, each on the validation images that it is measured on.
        stages: of the earlier version: the classes that others have added are left out.
    """
    raw = functools.partial(jax.jit(_raw, static_argnums=(0, 3)), setup.model)
    changes: dict[str, float] = {}
    for stream, stream_tasks in experiment.measured_streams(setup, tasks).items():
        channels = {name: task.channels_after(stages) for name, task in stream_tasks.items()}
        for task, change in _of_stream(raw, experiment.eval_batches(setup, stream), before, after, channels).items():
            changes[task] = max(changes.get(task, 0.0), change)
    return changes


def _raw(model: Any, variables: PyTree, image: Array, names: tuple[str, ...]) -> dict[str, Array]:
    return multi_task.eval_raw(model, variables, image, tasks=names)[0]


def _of_stream(
    raw: Any, batches: Iterable[Any], before: PyTree, after: PyTree, channels: Mapping[str, int]
) -> dict[str, float]:
    changes = dict.fromkeys(channels, 0.0)
    for batch in batches:
        outputs = [jax.device_get(raw(variables, batch.image, tuple(channels))) for variables in (before, after)]
        for task, count in channels.items():
            old, new = (
                stage_outputs[task] if stage_outputs[task].ndim < 2 else stage_outputs[task][..., :count]
                for stage_outputs in outputs
            )
            if not np.array_equal(old, new, equal_nan=True):
                changes[task] = max(changes[task], float(np.abs(old - new).max()))
    return changes
