"""Exemplars of old classes: images of the old run's data, which are trained on with the images of new classes."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from mtl_jax import experiment
from mtl_jax.config.run_settings import RunSettings
from mtl_jax.continual import replay_buffer
from mtl_jax.continual.logit_adjustment import COMPETING
from mtl_jax.continual.negatives import BOXES
from mtl_jax.continual.replay import Replay
from mtl_jax.continual.replay_buffer import ReplayBuffer
from mtl_jax.data import leakage
from mtl_jax.data.sources.base import Source, Subset
from mtl_jax.errors import UserError
from mtl_jax.workdir import checkpoints
from mtl_jax.workdir.trained import Trained

_log = logging.getLogger(__name__)

KINDS = (*COMPETING, BOXES)
PER_CLASS = 10  # images, where nothing else is asked for
# Replayed images of each old stream in a step, and the weight of their loss, by whether old classes' parameters change.
# With two images of weight 1, old classes lose more (docs/grow.md).
REPLAYED = {False: {"batch_size": 4, "weight": 2.0}, True: {"batch_size": 8, "weight": 4.0}}
# The same of boxes where parameters change, besides images without objects: digits lose nothing, and 7 % without.
REPLAYED_BOXES = {"batch_size": 2, "weight": 0.5}
# Of logit adjustment where old classes are replayed: with 0, three of eight runs lose more than 5 % (docs/grow.md).
PRIOR_WITH_EXEMPLARS = 0.5
MAX_SIDE = Replay().max_side  # px, of a stored image
ENLARGED = 2  # times the size at which a network sees them
SELECTION = Replay().selection


def growing_tasks(parent: Trained, page: RunSettings, *, refine: bool) -> tuple[str, ...]:
    """Returns the tasks of an old run that get classes from a page, or more data.

    Args:
        parent: the finished run.
        page: tasks, streams and stages to add.
        refine: whether the page has more data for existing classes.
    """
    return tuple(
        name
        for name, task in page.tasks.items()
        if name in parent.tasks and (refine or set(task.get("classes") or ()) - set(parent.tasks[name].classes))
    )


def usual_count(parent: Trained, page: RunSettings, *, may_change: bool, refine: bool = False) -> int:
    """Returns how many images of each old class are used where nobody says.

    Args:
        parent: the finished run.
        page: tasks, streams and stages to add.
        may_change: whether shared parameters may change.
        refine: whether the page has more data for existing classes.

    Returns:
        `PER_CLASS` where exemplars are needed and the training images of the old run are still there, else 0.
    """
    tasks = growing_tasks(parent, page, refine=refine)
    needed = _stages_to_choose_from(parent.config.to_dict(), parent, tasks, may_change=may_change)
    try:
        for stream in needed:
            experiment.source(parent.setup, stream, training=True)
    except UserError as error:
        _log.warning(
            "No images of the old run are used, and old tasks or classes may lose more: expected the training images "
            "of %s, found none (%s)",
            parent.path,
            error,
        )
        return 0
    return PER_CLASS if needed else 0


def are_stored(parent: Trained) -> bool:
    """Returns whether the memory of a run has exemplars."""
    memory = checkpoints.load(parent.path, {"memory": None})["memory"] or {}
    return any(len(replay_buffer.from_tree(tree)) for tree in memory.get(Replay.slot, {}).values())


def configure(
    config: dict[str, Any],
    parent: Trained,
    tasks: Iterable[str],
    new_stages: Iterable[str],
    *,
    per_class: int,
    may_change: bool,
    refine: bool = False,
) -> None:
    """Configures exemplars: old stages store them, and new stages replay them or, for boxes, join them to their images.

    Args:
        config: settings of the new run.
        parent: the finished run.
        tasks: those with new classes, or with more data.
        new_stages: new stages.
        per_class: largest number of images of an old class, and of a stream without classes.
        may_change: whether shared parameters may change; then there are exemplars of all old streams.
        refine: whether the tasks have more data for existing classes: boxes are replayed with their labels, too.

    Raises:
        UserError: nothing that is shared changes, and no task is of `KINDS`.
    """
    known = [name for name in tasks if parent.tasks[name].kind in KINDS]
    if not known and not may_change:
        raise UserError(
            f"--exemplars is for new classes, or more data, of a {', '.join(KINDS[:-1])} or {KINDS[-1]} task of "
            f"{parent.path}; leave it out"
        )
    images: dict[str, int] = {}
    for stream, stage in _stages_to_choose_from(config, parent, known, may_change=may_change).items():
        labelled = [parent.tasks[name] for name in config["streams"][stream]["labels"]]
        class_count = max(len(task.classes_of(stage) or task.first_classes) for task in labelled)
        images[stage] = max(images.get(stage, 0), per_class * max(class_count, 1))
    for stage, count in images.items():
        stored = config["stages"][stage]["keep"].get("replay", {})
        _set(config["stages"][stage], "replay", {**stored, "images": max(count, stored.get("images", 0))})
    if not known:
        return
    kinds, moves = {parent.tasks[name].kind for name in known}, may_change or refine
    replayed = REPLAYED[moves] if kinds & set(COMPETING) else REPLAYED_BOXES if moves else {}
    if replayed and not may_change:  # images of other tasks would teach nothing
        replayed = {**replayed, "streams": tuple(_stages_of_streams(config, parent, known))}
    negatives = {"negatives": True} if BOXES in kinds and not refine else {}
    for stage in new_stages:
        _set_defaults(config["stages"][stage], "replay", {**replayed, **negatives})


def adjust_logits(
    config: dict[str, Any],
    parent: Trained,
    extended_tasks: Iterable[str],
    new_stages: Iterable[str],
    *,
    with_exemplars: bool,
) -> None:
    """Configures the loss of new classes that compete with old ones, of which fewer images are shown, or none.

    Args:
        config: settings of the new run.
        parent: the finished run.
        extended_tasks: tasks with new classes.
        new_stages: new stages.
        with_exemplars: whether images of old classes are replayed.
    """
    competing = {name for name in extended_tasks if parent.tasks[name].kind in COMPETING}
    settings = {"prior": PRIOR_WITH_EXEMPLARS} if with_exemplars else {}
    for stage in (config["stages"][name] for name in new_stages):
        if competing & {task for stream in stage["streams"] for task in config["streams"][stream]["labels"]}:
            _set_defaults(stage, "logit_adjustment", settings)


def _set_defaults(stage: dict[str, Any], method: str, settings: Mapping[str, Any]) -> None:
    """Sets those settings of a method that the stage does not define."""
    _set(stage, method, {**settings, **stage["keep"].get(method, {})})


def _set(stage: dict[str, Any], method: str, settings: Mapping[str, Any]) -> None:
    stage["keep"] = {**stage["keep"], method: dict(settings)}


def _stages_of_streams(config: Mapping[str, Any], parent: Trained, extended_tasks: Iterable[str]) -> dict[str, str]:
    """Returns the old streams that label some tasks, with the last stage that trained on each."""
    tasks = {name for name in extended_tasks if parent.tasks[name].kind in KINDS}
    return {
        stream: stage
        for stage in parent.stages
        for stream in config["stages"][stage]["streams"]
        if tasks & set(config["streams"][stream]["labels"])
    }


def _stages_to_choose_from(
    config: Mapping[str, Any], parent: Trained, tasks: Iterable[str], *, may_change: bool
) -> dict[str, str]:
    """Returns the old streams whose exemplars are chosen, with the last stage that trained on each.

    These are the streams of tasks with new classes or more data and, where shared parameters may change, all others.
    """
    if not may_change:
        return _stages_of_streams(config, parent, tasks)
    return {stream: stage for stage in parent.stages for stream in config["stages"][stage]["streams"]}


def choose(
    config: Mapping[str, Any],
    parent: Trained,
    tasks: Collection[str],
    new_sources: Mapping[str, Source],
    *,
    may_change: bool,
) -> dict[str, dict[str, Any]]:
    """Selects the exemplars of old stages, as configured.

    Args:
        config: settings of the new run, as plain values.
        parent: the finished run, with its training images.
        tasks: those with new classes, or with more data.
        new_sources: stream -> the images of new classes; none of them is an exemplar of boxes.
        may_change: whether shared parameters may change.

    Returns:
        Stream -> its exemplars, in the form of checkpoints; of boxes none where the new data holds all old images.

    Raises:
        UserError: the old data is missing.
    """
    by_stream = {}
    needed = _stages_to_choose_from(config, parent, tasks, may_change=may_change)
    for number, (stream, stage) in enumerate(needed.items()):
        count = config["stages"][stage]["keep"].get("replay", {}).get("images", 0)
        if not count:
            continue
        source = experiment.source(parent.setup, stream, training=True)
        generator = np.random.default_rng([config["seed"], number])
        candidates = generator.permutation(len(source)).tolist()
        labelled = set(config["streams"][stream]["labels"]) & {*tasks}
        if BOXES in {parent.tasks[name].kind for name in labelled}:
            is_new = {leak.validation.index for leak in leakage.find(new_sources, {stream: source})}
            candidates = [index for index in candidates if index not in is_new]
            if not candidates:
                by_stream[stream] = replay_buffer.to_tree(ReplayBuffer((), dict(source.class_names)))
                continue
        buffer = replay_buffer.fill(
            Subset(source, candidates[: replay_buffer.CANDIDATES]),
            count=count,
            selection=SELECTION,
            generator=generator,
            max_side_px=_max_side(parent, stream),
        )
        by_stream[stream] = replay_buffer.to_tree(buffer)
    return by_stream


def _max_side(parent: Trained, stream: str) -> int:
    """Returns the longer side of stored images, px: enough for crops and for what augmentation enlarges."""
    shown = max(experiment.view(parent.setup, stream).image_size, experiment.train_image_size(parent.setup, stream))
    return min(MAX_SIDE, ENLARGED * shown)
