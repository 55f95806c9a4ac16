"""Every stage planned and prepared from shapes alone, so that a mistake in the last is told before the first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mtl_jax import balance, experiment, tasks
from mtl_jax.config import checks
from mtl_jax.continual import memory
from mtl_jax.data import transforms
from mtl_jax.data.sources import registry
from mtl_jax.errors import UserError
from mtl_jax.models import multi_task
from mtl_jax.training import stage_plan, stage_setup
from mtl_jax.training.stage_plan import StageResult


def rehearse(config: Any, parts: experiment.Experiment) -> None:
    """Goes through all stages without compiling or training anything.

    Args:
        config: the resolved configuration.
        parts: what it describes.

    Raises:
        UserError: a setting of any stage, stream or task that does not fit the others.
    """
    check_sizes(config)
    for stream in parts.used_streams:
        _check_labels(parts, stream, experiment.source(parts, stream, training=True))
    variables = experiment.abstract_variables(parts)
    kept = memory.nothing()
    for index in range(len(config.order)):
        learnt = StageResult(variables, kept, stages=[], train_seconds=0.0, step=0)
        stage = stage_plan.plan(config, parts, index, learnt)
        jax.eval_shape(lambda given, stage=stage, learnt=learnt: _state(parts, stage, learnt, given), variables)
        for method in stage.view.keep.values():
            kept = method.expected(stage.view, kept, variables)


def _state(parts: experiment.Experiment, stage: stage_plan.StagePlan, learnt: StageResult, variables: Any) -> Any:
    return stage_setup.prepare(parts, stage, learnt._replace(variables=variables), seed=0)[0]


def check_arguments(config: Any) -> None:
    """Checks the types in tables of keyword arguments: of tasks, sources, augmentation and balancing.

    Raises:
        UserError: a value of another type than the argument's.
    """
    tables: list[tuple[str, str, str, Any]] = [
        ("tasks", name, "", tasks.KINDS.get(task.get("kind"))) for name, task in config.tasks.items()
    ]
    for name, stream in config.streams.items():
        tables.append(("streams", name, "augment", transforms.Augment))
        tables.append(("streams", name, "options", registry.SOURCES.get(stream.source)))
    tables += [
        ("stages", name, "balance_options", balance.METHODS.get(stage.balance)) for name, stage in config.stages.items()
    ]
    for section, name, table, factory in tables:
        settings = config[section][name]
        if factory is not None:  # an unknown choice is refused where it is made
            where = ".".join(part for part in ("config", section, name, table) if part)
            checks.check_arguments(where, settings[table] if table else settings, factory)


def check_sizes(config: Any) -> None:
    """Checks that the network can take images of every size that the config names.

    Raises:
        UserError: a size that is no multiple of the network's stride.
    """
    sizes = {"config.image_size": config.image_size}
    sizes["config.contract.latency_image_size"] = config.contract.latency_image_size
    for name, settings in config.streams.items():
        for setting in ("image_size", "train_image_size"):
            sizes[f"config.streams.{name}.{setting}"] = settings[setting]
    for where, size in sizes.items():
        if size % multi_task.IMAGE_STRIDE:
            near = max(1, round(size / multi_task.IMAGE_STRIDE)) * multi_task.IMAGE_STRIDE
            raise UserError(
                f"{where} is {size}; expected a multiple of {multi_task.IMAGE_STRIDE} px, such as {near}: the network "
                "halves an image five times"
            )


def _check_labels(parts: experiment.Experiment, stream: str, source: registry.Source) -> None:
    """Looks at one sample: whether its labels are of the kind that the tasks learn from."""
    example = next(experiment.examples(parts, stream, experiment.Subset(source, [0])))
    size = example["image"].shape[:2]
    for task, label in parts.streams[stream]["labels"].items():
        wanted = parts.tasks[task].no_labels(1, size)
        if not _kinds(wanted, 1).items() <= _kinds(example["labels"][task], 0).items():
            raise UserError(
                f"config.streams.{stream}.labels gives task {task} ({parts.tasks[task].kind}) the label {label!r}, "
                f"which holds {', '.join(example['labels'][task])} where the task learns from "
                f"{', '.join(wanted)}; name another label or kind"
            )


def _kinds(fields: Mapping[str, Any], batch_axes: int) -> dict[str, tuple[str, int]]:
    """Of every field, the kind of its numbers, and its axes beside the batch."""
    return {
        name: (np.asarray(field).dtype.kind.replace("u", "i"), np.ndim(field) - batch_axes)
        for name, field in fields.items()
    }
