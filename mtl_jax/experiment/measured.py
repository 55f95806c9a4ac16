"""Streams on whose validation images tasks are measured, how these are shown, and their batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data import pipeline, sampling
from mtl_jax.errors import UserError
from mtl_jax.experiment.parts import Experiment, classes_of, ignore_labels, source
from mtl_jax.tasks.base import Task

MOST_HELD_OUT = 2000  # images that thresholds and temperatures are chosen on: more would change little


class View(NamedTuple):
    """How an image is shown to the network."""

    image_size: int  # px, both sides
    crop: bool  # its largest square, instead of the whole image between grey bars

    def __str__(self) -> str:
        return f"{'the largest square' if self.crop else 'the whole image'} at {self.image_size} px"


def view(experiment: Experiment, stream: str) -> View:
    """Returns how a stream's validation images are shown to the network."""
    settings = experiment.streams[stream]
    return View(settings.image_size or experiment.image_size, settings.crop)


def labelling_streams(experiment: Experiment, task: str) -> tuple[str, ...]:
    """Returns the streams of the order that label a task.

    The first of them is the one that stands for the task: it is measured on its validation images, and predicts and is
    exported as these are shown.
    """
    return tuple(name for name in experiment.used_streams if task in experiment.streams[name].labels)


def measuring_streams(experiment: Experiment, task: str) -> tuple[str, ...]:
    """Returns the streams on whose validation images a task is measured, as if they were one.

    They are the first of those that label it, and those whose images label classes that the ones before do not; of
    those that have come with later classes of the task `streams_of_addition` names.
    """
    addition_streams = [
        name
        for addition in experiment.tasks[task].additions
        for name in streams_of_addition(experiment, task, addition.stage)
    ]
    streams = tuple(name for name in labelling_streams(experiment, task) if name not in addition_streams)
    if len(streams) < 2 or not experiment.tasks[task].classes:
        return streams[:1]
    streams_used, is_measured = list(streams[:1]), np.zeros(len(experiment.tasks[task].classes), bool)
    with contextlib.suppress(UserError):  # a missing dataset is reported where it is read
        for stream in streams:
            data = source(experiment, stream, training=False)
            labelled = np.array(classes_of(experiment, stream, data)[task].labelled)
            if stream not in streams_used and (labelled & ~is_measured).any():
                streams_used.append(stream)
            is_measured |= labelled
    return tuple(streams_used)


def unmeasured_streams(experiment: Experiment, task: str) -> tuple[str, ...]:
    """Returns the streams that label a task, and on whose validation images nothing of it is measured."""
    measuring = list(measuring_streams(experiment, task))
    for addition in experiment.tasks[task].additions:
        measuring += streams_of_addition(experiment, task, addition.stage)
    return tuple(name for name in labelling_streams(experiment, task) if name not in measuring)


def streams_of_addition(experiment: Experiment, task: str, stage: str) -> tuple[str, ...]:
    """Returns the streams from which a stage teaches the classes that it adds to a task."""
    streams = experiment.stage_streams.get(stage, ())
    return tuple(name for name in streams if task in experiment.streams[name].labels)


def measured_streams(experiment: Experiment, tasks: Iterable[str]) -> dict[str, dict[str, Task]]:
    """Returns, by stream, those of the tasks that are measured on it (`measuring_streams`)."""
    by_stream: dict[str, dict[str, Task]] = {}
    for task in tasks:
        for stream in measuring_streams(experiment, task):
            by_stream.setdefault(stream, {})[task] = experiment.tasks[task]
    return by_stream


def task_view(experiment: Experiment, task: str) -> View:
    """Returns how the images that a task is measured on are shown; whole ones where no stream labels it."""
    streams = labelling_streams(experiment, task)
    return view(experiment, streams[0]) if streams else View(experiment.image_size, crop=False)


def validation_data(experiment: Experiment, stream: str) -> dict[str, Any]:
    """Returns what a stream's figures are measured on: "stream", "source", "split", "images", "shown", "data_root"."""
    settings = experiment.streams[stream]
    return {
        "stream": stream,
        "source": settings.source,
        "split": settings.val_split,
        "images": len(source(experiment, stream, training=False)),
        "shown": str(view(experiment, stream)),
        "data_root": str(experiment.data_root),
    }


def eval_batches(experiment: Experiment, stream: str, *, held_out: bool = False) -> Any:
    """Returns the validation batches of a stream; or its held-out training images, shown as those are."""
    settings, (image_size, crop) = experiment.streams[stream], view(experiment, stream)
    data = source(experiment, stream, training=held_out, held_out=held_out)
    if held_out and len(data) > MOST_HELD_OUT:
        data = sampling.held_out(data, 100 * MOST_HELD_OUT / len(data))[0]
    return pipeline.eval_batches(
        data,
        labels=dict(settings.labels),
        image_size=image_size,
        batch_size=settings.eval_batch_size,
        crop=crop,
        ignore_labels=ignore_labels(experiment, stream),
        classes=classes_of(experiment, stream, data),
    )


def stream_tasks(experiment: Experiment, stream: str) -> dict[str, Task]:
    """Returns the tasks that a stream labels."""
    return {task: experiment.tasks[task] for task in experiment.streams[stream].labels}
