"""Pseudo-labels: classes that a dataset does not label, filled in by the average of the network in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Float, PyTree

from mtl_jax.models import multi_task
from mtl_jax.tasks.base import Labels, Task

StreamLabels = Mapping[str, Mapping[str, Labels]]  # stream -> task -> labels


def fill_labels(
    model: Any,
    tasks: Mapping[str, Task],
    labels: StreamLabels,
    *,
    rows: Mapping[str, slice],
    image: Float[Array, "batch height width 3"],
    average: PyTree,
    threshold: float,
) -> StreamLabels:
    """Replaces missing labels by confident predictions of the averaged network.

    Args:
        model: from `multi_task.build`.
        tasks: every task of the model.
        labels: of the images.
        rows: of each stream among the images.
        image: of the streams, one after another.
        average: variables.
        threshold: least probability or score of a prediction.

    References:
        Tarvainen, Valpola, "Mean teachers are better role models", 2017 (there its outputs are targets as they are).
    """
    incomplete_tasks = tuple(
        dict.fromkeys(task for of in labels.values() for task in of if _lacks_classes(tasks, task, of[task]))
    )
    if not incomplete_tasks:
        return labels
    raw = jax.lax.stop_gradient(multi_task.eval_raw(model, average, image, tasks=incomplete_tasks)[0])
    size = (image.shape[1], image.shape[2])

    def fill(stream: str, task: str, task_labels: Labels) -> Labels:
        return (
            tasks[task].fill_in(task_labels, raw[task][rows[stream]], size, threshold)
            if task in incomplete_tasks
            else task_labels
        )

    return {
        stream: {task: fill(stream, task, task_labels) for task, task_labels in of.items()}
        for stream, of in labels.items()
    }


def _lacks_classes(tasks: Mapping[str, Task], task: str, labels: Labels) -> bool:
    """Whether any class may be unlabelled; stored outputs of exemplars are no task's labels."""
    return task in tasks and tasks[task].lacks_classes(labels)
