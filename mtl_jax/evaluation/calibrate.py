"""Chooses temperatures and thresholds on training images that no step has seen, and measures them on others."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from mtl_jax import experiment
from mtl_jax.evaluation import scores
from mtl_jax.evaluation.contract_table import addition
from mtl_jax.evaluation.evaluate import Predict, example
from mtl_jax.evaluation.scores import Observed, YesNo
from mtl_jax.experiment import Experiment
from mtl_jax.models import multi_task
from mtl_jax.tasks.base import Task
from mtl_jax.tasks.calibration import SCORES, Calibration, calibrated, least_scores

DECIMALS = 4  # of figures in JSON


def make_scores(model: Any, tasks: Mapping[str, Task]) -> Predict:
    """Returns jitted `(variables, image, names) -> {task: predictions}`, those of masks with the cells' probabilities.

    Args:
        model: from `multi_task.build`.
        tasks: every task of the model.
    """

    @functools.partial(jax.jit, static_argnames="names")
    def predict(
        variables: PyTree, image: Float[Array, "batch height width 3"], names: tuple[str, ...]
    ) -> dict[str, dict[str, Array]]:
        raw, _ = multi_task.eval_raw(model, variables, image, tasks=names)
        return {name: _scored(tasks[name], raw[name], image.shape) for name in names}

    return predict


def _scored(task: Task, raw: Array, shape: tuple[int, ...]) -> dict[str, Array]:
    if task.kind != "segmentation":
        return task.predictions(raw, (shape[1], shape[2]))
    return {"cells": jax.nn.softmax(raw.astype(jnp.float32)), "stride": jnp.full(shape[0], task.strides[0])}


def observe(
    predict: Predict,
    setup: Experiment,
    variables: PyTree,
    names: Iterable[str],
    *,
    held_out: bool,
    stages: Iterable[str] = (),
) -> dict[str, Observed]:
    """Returns what tasks score, right and wrong, on the images of the streams that they are measured on.

    Classes that a stage has added to a task are observed apart, on the images that came with them.

    Args:
        predict: from `make_scores`.
        setup: the experiment.
        variables: of the network.
        names: of the tasks; kinds without scores are left out.
        held_out: the training images that no step has seen (all where none are held out); else validation images.
        stages: finished stages, whose added classes are observed.

    Returns:
        Task, or `contract_table.addition` -> what was observed, where that is anything.
    """
    names = [name for name in names if setup.tasks[name].kind in scores.OBSERVE]
    streams = [(stream, tuple(tasks), "") for stream, tasks in experiment.measured_streams(setup, names).items()]
    for stage, name in itertools.product(stages, names):
        if stage in setup.tasks[name].later_classes:
            streams += [(stream, (name,), stage) for stream in experiment.streams_of_addition(setup, name, stage)]
    observations: dict[str, list[Observed | None]] = {}
    for stream, stream_tasks, stage in streams:
        for batch in experiment.eval_batches(setup, stream, held_out=held_out):
            predictions = jax.device_get(predict(variables, batch.image, names=stream_tasks))
            for index, (target, geometry) in enumerate(zip(batch.targets, batch.geometries, strict=True)):
                for name in stream_tasks:
                    task = setup.tasks[name]
                    look, labels = scores.OBSERVE[task.kind], task.measured_labels(target[name], stage)
                    observation = look(example(predictions[name], index), labels, geometry, len(task.classes))
                    observations.setdefault(addition(name, stage) if stage else name, []).append(observation)
    joined = {name: scores.joined(of_images) for name, of_images in observations.items()}
    return {name: observation for name, observation in joined.items() if observation is not None}


def choose(
    tasks: Mapping[str, Task], observed: Mapping[str, Observed], *, unseen: bool = True
) -> dict[str, Calibration]:
    """Chooses, for each task, its temperature and then its thresholds.

    Args:
        tasks: by name.
        observed: what they scored.
        unseen: on images that no step has seen; else temperatures stay 1: a network is surer of what it was trained on.
    """
    return {name: _calibrate(name, tasks[name], observed, unseen) for name in observed if name in tasks}


def _calibrate(name: str, task: Task, observed: Mapping[str, Observed], unseen: bool) -> Calibration:
    """Chooses the temperature and thresholds of first classes as without others, and thresholds of added ones."""
    temperature = scores.temperature(observed[name]) if unseen else 1.0
    thresholds = _thresholds(task, task.output_classes, observed[name], temperature)
    for stage, classes in task.later_classes.items():
        if of_stage := observed.get(addition(name, stage)):
            thresholds |= _thresholds(task, classes, of_stage, temperature)
    return Calibration(temperature, thresholds)


def _thresholds(task: Task, classes: Collection[str], observed: Observed, temperature: float) -> dict[str, float]:
    if not isinstance(observed, YesNo) or observed.objects.sum() < scores.LEAST_OBJECTS:
        return {}
    levels = scores.thresholds(scores.at_temperature(observed, temperature))  # pyright: ignore[reportArgumentType]
    return {name: level for name, level in zip(task.classes, levels.tolist(), strict=True) if name in classes}


def judge(
    tasks: Mapping[str, Task], observed: Mapping[str, Observed], calibrations: Mapping[str, Calibration]
) -> dict[str, dict[str, Any]]:
    """Measures what was chosen, on other images than those that it was chosen on.

    Args:
        tasks: by name.
        observed: what they score there.
        calibrations: from `choose`.

    Returns:
        Task -> "temperature", "calibration_error_before", "calibration_error", and of a task with thresholds
        "thresholds", "f1_before" (with its kind's threshold) and "f1".
    """
    return {
        name: _judged(tasks[name], observed[name], calibration)
        for name, calibration in calibrations.items()
        if name in observed
    }


def _judged(task: Task, observed: Observed, calibration: Calibration) -> dict[str, Any]:
    after = scores.at_temperature(observed, calibration.temperature)
    figures: dict[str, Any] = {
        "temperature": calibration.temperature,
        "calibration_error_before": scores.calibration_error(observed),
        "calibration_error": scores.calibration_error(after),
    }
    if isinstance(observed, YesNo) and isinstance(after, YesNo):
        before = np.full(len(task.classes), SCORES[task.kind].least)
        levels = least_scores(calibrated(task, calibration))
        figures |= {"thresholds": dict(calibration.thresholds), "f1_before": scores.f1(observed, before)}
        figures["f1"] = scores.f1(after, levels)
    return {name: round(x, DECIMALS) if isinstance(x, float) else x for name, x in figures.items()}
