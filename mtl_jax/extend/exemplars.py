"""Exemplars of old classes, selected from the old run's data and replayed with the images of new classes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mtl_jax import experiment
from mtl_jax.config.run_settings import RunSettings
from mtl_jax.continual import replay
from mtl_jax.continual.replay import Replay
from mtl_jax.data.sources.base import Subset
from mtl_jax.errors import UserError
from mtl_jax.workdir.trained import Trained

_log = logging.getLogger(__name__)

COMPETING = ("segmentation", "classification")  # task kinds with one softmax over all classes
PER_CLASS = 10  # images, where nothing else is asked for
BATCH_SIZE = 4  # replayed images of each old stream in a step
WEIGHT = 2.0  # of their loss: with 1, classifiers of old classes lose 4 to 15 % of their metric instead of 3 to 4 %
MAX_SIDE = Replay().max_side  # px, of a stored image
SELECTION = Replay().selection


def usual_count(parent: Trained, page: RunSettings) -> int:
    """Returns how many images of each old class are replayed where nobody says.

    Args:
        parent: the finished run.
        page: tasks, streams and stages to add.

    Returns:
        `PER_CLASS` where classes are added that compete with old ones whose training images are still there, else 0.
    """
    extended_tasks = [
        name
        for name, task in page.tasks.items()
        if name in parent.tasks
        and parent.tasks[name].kind in COMPETING
        and set(task["classes"]) - set(parent.tasks[name].classes)
    ]
    try:
        for stream in _stages_of_streams(parent.config.to_dict(), parent, extended_tasks):
            experiment.source(parent.setup, stream, training=True)
    except UserError as error:
        _log.warning(
            "No images of old classes are replayed, and new ones may take many of their pixels or images: expected the "
            "training images of %s, found none (%s)",
            parent.path,
            error,
        )
        return 0
    return PER_CLASS if extended_tasks else 0


def configure(
    config: dict[str, Any], parent: Trained, extended_tasks: Iterable[str], new_stages: Iterable[str], *, per_class: int
) -> None:
    """Configures exemplars: old stages store them, new stages replay them.

    Args:
        config: settings of the new run.
        parent: the finished run.
        extended_tasks: tasks with new classes.
        new_stages: new stages.
        per_class: largest number of images of an old class.

    Raises:
        UserError: no extended task has competing classes.
    """
    competing = [name for name in extended_tasks if parent.tasks[name].kind in COMPETING]
    if not competing:
        raise UserError(
            f"--exemplars is for new classes of a {' or '.join(COMPETING)} task of {parent.path}, which compete with "
            "the old ones; leave it out"
        )
    images: dict[str, int] = {}
    for stream, stage in _stages_of_streams(config, parent, competing).items():
        tasks = [task for task in competing if task in config["streams"][stream]["labels"]]
        images[stage] = max(images.get(stage, 0), per_class * max(len(parent.tasks[task].classes) for task in tasks))
    for stage, count in images.items():
        _set_default(config["stages"][stage], "images", count)
    for stage in new_stages:
        _set_default(config["stages"][stage], "batch_size", BATCH_SIZE)
        _set_default(config["stages"][stage], "weight", WEIGHT)


def _set_default(stage: dict[str, Any], name: str, value: float) -> None:
    """Sets a replay setting, unless the stage defines it."""
    keep = {method: dict(settings) for method, settings in stage["keep"].items()}
    keep.setdefault("replay", {}).setdefault(name, value)
    stage["keep"] = keep


def _stages_of_streams(config: Mapping[str, Any], parent: Trained, extended_tasks: Iterable[str]) -> dict[str, str]:
    """Returns the old streams that label some tasks, with the last stage that trained on each."""
    tasks = {name for name in extended_tasks if parent.tasks[name].kind in COMPETING}
    return {
        stream: stage
        for stage in parent.stages
        for stream in config["stages"][stage]["streams"]
        if tasks & set(config["streams"][stream]["labels"])
    }


def choose(config: Mapping[str, Any], parent: Trained, extended_tasks: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Selects the exemplars of old stages, as configured.

    Args:
        config: settings of the new run, as plain values.
        parent: the finished run, with its training images.
        extended_tasks: tasks with new classes.

    Returns:
        Stream -> its exemplars, in the form of checkpoints.

    Raises:
        UserError: the old data is missing.
    """
    by_stream = {}
    for number, (stream, stage) in enumerate(_stages_of_streams(config, parent, extended_tasks).items()):
        count = config["stages"][stage]["keep"].get("replay", {}).get("images", 0)
        if not count:
            continue
        source = experiment.source(parent.setup, stream, training=True)
        generator = np.random.default_rng([config["seed"], number])
        candidates = generator.permutation(len(source))[: replay.CANDIDATES]
        buffer = replay.fill(
            Subset(source, candidates.tolist()),
            count=count,
            selection=SELECTION,
            generator=generator,
            max_side_px=MAX_SIDE,
        )
        by_stream[stream] = replay.to_tree(buffer)
    return by_stream
