"""A few images of old classes, trained on together with those of new ones: chosen from the old run's own data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mtl_jax import experiment
from mtl_jax.continual import replay
from mtl_jax.continual.replay import Replay
from mtl_jax.data.sources.base import Subset
from mtl_jax.errors import UserError
from mtl_jax.workdir.trained import Trained

COMPETING = ("segmentation", "classification")  # kinds of tasks whose classes do
BATCH_SIZE = 2  # images of each old stream in a step
MAX_SIDE = Replay().max_side  # px, of a kept image
SELECTION = Replay().selection


def ask(
    config: dict[str, Any], old: Trained, extended_tasks: Iterable[str], new: Iterable[str], *, per_class: int
) -> None:
    """Writes exemplars into the settings: what old stages leave, and what the new ones replay.

    Args:
        config: of the new run.
        old: the finished run.
        extended_tasks: tasks that get classes.
        new: stages that teach them.
        per_class: images for each old class at most.

    Raises:
        UserError: there is no task in which they would teach anything.
    """
    competing = [name for name in extended_tasks if old.tasks[name].kind in COMPETING]
    if not competing:
        raise UserError(
            f"--exemplars is for new classes of a {' or '.join(COMPETING)} task of {old.path}, which compete with the "
            "old ones; leave it out"
        )
    images: dict[str, int] = {}
    for stream, stage in _taught(config, old, competing).items():
        tasks = [task for task in competing if task in config["streams"][stream]["labels"]]
        images[stage] = max(images.get(stage, 0), per_class * max(len(old.tasks[task].classes) for task in tasks))
    for stage, count in images.items():
        _set(config["stages"][stage], "images", count)
    for stage in new:
        _set(config["stages"][stage], "batch_size", BATCH_SIZE)


def _set(stage: dict[str, Any], name: str, value: int) -> None:
    """Sets a setting of replay, unless the stage has it."""
    keep = {method: dict(settings) for method, settings in stage["keep"].items()}
    keep.setdefault("replay", {}).setdefault(name, value)
    stage["keep"] = keep


def _taught(config: Mapping[str, Any], old: Trained, extended_tasks: Iterable[str]) -> dict[str, str]:
    """The streams of the old run that label some tasks, each with the last stage that learnt from it."""
    tasks = {name for name in extended_tasks if old.tasks[name].kind in COMPETING}
    return {
        stream: stage
        for stage in old.stages
        for stream in config["stages"][stage]["streams"]
        if tasks & set(config["streams"][stream]["labels"])
    }


def choose(config: Mapping[str, Any], old: Trained, extended_tasks: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Chooses the exemplars that the settings say old stages leave.

    Args:
        config: of the new run, as plain values.
        old: the finished run, whose training images are there.
        extended_tasks: tasks that get classes.

    Returns:
        Stream -> its exemplars, as a checkpoint holds them.

    Raises:
        UserError: the old data is not there.
    """
    by_stage = {}
    for number, (stream, stage) in enumerate(_taught(config, old, extended_tasks).items()):
        count = config["stages"][stage]["keep"].get("replay", {}).get("images", 0)
        if not count:
            continue
        source = experiment.source(old.setup, stream, training=True)
        generator = np.random.default_rng([config["seed"], number])
        candidates = generator.permutation(len(source))[: replay.CANDIDATES]
        buffer = replay.fill(
            Subset(source, candidates.tolist()),
            count=count,
            selection=SELECTION,
            generator=generator,
            max_side_px=MAX_SIDE,
        )
        by_stage[stream] = replay.to_tree(buffer)
    return by_stage
