"""Images shown as they are and mirrored, and the two outputs made one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from mtl_jax.models import multi_task
from mtl_jax.tasks.base import Task


def outputs(
    model: Any, variables: PyTree, image: Float[Array, "batch height width 3"], tasks: Mapping[str, Task]
) -> dict[str, Array]:
    """Returns the tasks' outputs of both ways: the mean of logits, values and depths, and the boxes of both.

    Args:
        model: from `multi_task.build`.
        variables: of the network.
        image: a batch.
        tasks: requested tasks.
    """
    width = image.shape[2]
    both_outputs = [
        multi_task.apply_eval(model, variables, view, tasks=tuple(tasks)) for view in (image, image[:, :, ::-1])
    ]
    return {name: _combined(task, both_outputs[0][name], both_outputs[1][name], width) for name, task in tasks.items()}


def _combined(task: Task, original: Array, mirrored: Array, width: int) -> Array:
    if task.readout == "cells":  # suppression and voting make one box of the two
        back = mirrored.at[..., 0].set(width - mirrored[..., 0])
        return jnp.concatenate([original, back], axis=1)
    return 0.5 * (original + (mirrored[:, :, ::-1] if task.readout == "dense" else mirrored))
