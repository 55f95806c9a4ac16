"""Dry run: every stage is planned from shapes alone, so that a mistake in the last is reported before the first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import PyTree

from mtl_jax import experiment
from mtl_jax.config.run_settings import RunSettings
from mtl_jax.continual import memory
from mtl_jax.data.sources import registry
from mtl_jax.data.sources.base import Subset
from mtl_jax.errors import UserError
from mtl_jax.training import stage_plan, stage_setup, task_balancing
from mtl_jax.training.stage_plan import StageResult

UNOPENED_STEPS = 100  # of an epoch of a dataset that has not been opened: epochs stay apart


def rehearse(
    config: RunSettings, setup: experiment.Experiment, *, variables: PyTree | None = None, data: bool = True
) -> None:
    """Goes through all stages without compiling or training anything.

    Args:
        config: the resolved configuration.
        setup: what it describes.
        variables: shapes of the network's; found where they are not given.
        data: open the datasets too, and look at one sample of each; False opens nothing.

    Raises:
        UserError: a setting of any stage, stream or task that does not fit the others.
    """
    variables = variables or experiment.abstract_variables(setup)
    sources = {
        stream: _open_stream(setup, stream) if data else _Unopened(setup, stream) for stream in setup.used_streams
    }
    memory_shapes = memory.nothing()
    for index in range(len(config.order)):
        result = StageResult(variables, memory_shapes, stages=[], train_seconds=0.0, step=0)
        stage = stage_plan.plan(config, setup, index, result, sources=sources)
        stage_setup.choose(setup, stage, variables)
        for method in stage.view.keep.values():
            memory_shapes = method.expected(stage.view, memory_shapes, variables)


def _open_stream(setup: experiment.Experiment, stream: str) -> registry.Source:
    source = experiment.source(setup, stream, training=True)
    _check_labels(setup, stream, source)
    return source


@dataclasses.dataclass(frozen=True)
class _Unopened:
    """Stands in for a dataset that has not been opened: as if it held so many images, none of which is looked at."""

    setup: experiment.Experiment
    stream: str

    @property
    def class_names(self) -> Mapping[str, tuple[str, ...]]:
        labels = self.setup.streams[self.stream].labels
        return {label: tuple(self.setup.tasks[task].classes) for task, label in labels.items()}

    def __len__(self) -> int:
        return UNOPENED_STEPS * self.setup.streams[self.stream].batch_size

    def __getitem__(self, index: int) -> registry.Sample:
        raise IndexError(index)


def check_arguments(config: RunSettings) -> None:
    """Checks names and values in tables of keyword arguments: of sources, augmentation and balancing.

    Raises:
        UserError: an unknown choice or argument, one that is missing, or a value that does not fit.
    """
    for name, stream in config.streams.items():
        registry.check_options(stream.source, stream.options, location=f"config.streams.{name}")
        registry.check_options(
            stream.source, {**stream.options, **stream.val_options}, location=f"config.streams.{name}"
        )
        experiment.augmentation(f"config.streams.{name}", stream)
    for name, stage in config.stages.items():
        task_balancing.method(stage, tasks=1, location=f"config.stages.{name}")


def _check_labels(setup: experiment.Experiment, stream: str, source: registry.Source) -> None:
    """Looks at one sample: whether its labels are of the kind that the tasks learn from."""
    example = next(experiment.examples(setup, stream, Subset(source, [0])))
    size = example["image"].shape[:2]
    for task, label in setup.streams[stream].labels.items():
        expected_labels = setup.tasks[task].no_labels(1, size)
        if not _kinds(expected_labels, 1).items() <= _kinds(example["labels"][task], 0).items():
            raise UserError(
                f"config.streams.{stream}.labels.{task}: expected a label with {', '.join(expected_labels)}, of "
                "which a task of "
                f"kind {setup.tasks[task].kind} learns, found {label!r} with {', '.join(example['labels'][task])}; "
                "name "
                "another label or kind"
            )


def _kinds(fields: Mapping[str, Any], batch_axes: int) -> dict[str, tuple[str, int]]:
    """Of every field, the kind of its numbers, and its axes besides the batch."""
    return {
        name: (np.asarray(field).dtype.kind.replace("u", "i"), np.ndim(field) - batch_axes)
        for name, field in fields.items()
    }
