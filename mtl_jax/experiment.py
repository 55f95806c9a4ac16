"""From a config (or the one saved in a checkpoint) to the parts it names: tasks, network, sources, streams."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PyTree

from mtl_jax import config as config_lib
from mtl_jax import tasks as tasks_lib
from mtl_jax.config.checks import check_arguments, suggestion
from mtl_jax.config.run_settings import RunSettings
from mtl_jax.config.stream_settings import StreamSettings
from mtl_jax.data import partial, pipeline, transforms
from mtl_jax.data.sources import registry
from mtl_jax.data.sources.base import Subset
from mtl_jax.errors import UserError
from mtl_jax.models import multi_task
from mtl_jax.models.backbones import pretrained, published
from mtl_jax.runtime import devices
from mtl_jax.tasks.base import Task

SMOKE_EXAMPLES = 8  # images of each split that a smoke run touches


class View(NamedTuple):
    """How an image is shown to the network."""

    image_size: int  # px, both sides
    crop: bool  # its largest square, instead of the whole image between grey bars

    def __str__(self) -> str:
        return f"{'the largest square' if self.crop else 'the whole image'} at {self.image_size} px"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config describes. `streams` and the sizes are the config's own."""

    tasks: Mapping[str, Task]
    model: Any
    streams: Mapping[str, StreamSettings]
    used_streams: tuple[str, ...]  # those of the order's stages, as it comes to them
    data_root: Path
    image_size: int
    cache_bytes: int
    smoke: bool


def build(config: RunSettings | Mapping[str, Any], *, data_root: Path) -> Experiment:
    """Builds the tasks and the network of a config; touches no data.

    Args:
        config: settings, or the same as plain values.
        data_root: folder of the datasets.

    Raises:
        UserError: a section that does not fit its factory.
    """
    settings = config_lib.read_settings(config)
    tasks = tasks_lib.build(settings.tasks)
    check_crops(settings.streams, tasks)
    return Experiment(
        tasks=tasks,
        model=multi_task.build(settings.model, tasks),
        streams=settings.streams,
        used_streams=_used_streams(settings),
        data_root=data_root,
        image_size=settings.image_size,
        cache_bytes=int(settings.cache_gb * 1e9),
        smoke=settings.smoke,
    )


def _used_streams(settings: RunSettings) -> tuple[str, ...]:
    """The streams that the order trains on; all of a config without an order."""
    named = (stream for stage in settings.order for stream in settings.stages[stage].streams)
    return tuple(dict.fromkeys(named if settings.order else settings.streams))


def check_crops(streams: Mapping[str, StreamSettings], tasks: Mapping[str, Task]) -> None:
    """Checks that no stream crops images whose labels have places in them.

    Raises:
        UserError: one does.
    """
    for name, settings in streams.items():
        located = [task for task in settings.labels if task in tasks and tasks[task].readout != "pooled"]
        if settings.crop and located:
            raise UserError(
                f"config.streams.{name}.crop leaves parts of images away, in which task {located[0]} has "
                f"{tasks[located[0]].kind} labels; set it to False: it is for labels of whole images"
            )


def init_variables(experiment: Experiment, *, key: Array, pretrained_path: str, offline: bool = False) -> PyTree:
    """Returns fresh variables, with the backbone's pretrained features where a file of them is given.

    Args:
        experiment: from `build`.
        key: of the random initialisation.
        pretrained_path: "" for none; the name of a backbone whose weights are published, which are downloaded once; or
            a file, whose relative path is also looked for in data_root, data_root/weights and data_root/../weights.
        offline: download nothing.

    Raises:
        UserError: the file is nowhere, or does not hold this backbone's features.
    """
    variables = multi_task.init_variables(experiment.model, key=key)
    return _with_weights(experiment, variables, pretrained_path, offline)


def check_weights(experiment: Experiment, *, pretrained_path: str, offline: bool = False) -> None:
    """Finds the file of the pretrained features, or downloads it, and checks that it is the backbone's.

    Args:
        experiment: from `build`.
        pretrained_path: as `init_variables` takes it.
        offline: likewise.

    Raises:
        UserError: as `init_variables`.
    """
    if pretrained_path:
        _weights_file(experiment, pretrained_path, offline)  # before anything that takes longer
        _with_weights(experiment, abstract_variables(experiment), pretrained_path, offline)


def _with_weights(experiment: Experiment, variables: PyTree, pretrained_path: str, offline: bool) -> PyTree:
    if not pretrained_path:
        return variables
    path = _weights_file(experiment, pretrained_path, offline)
    return pretrained.load(variables, path, backbone=multi_task.backbone_name(experiment.model))


def _weights_file(experiment: Experiment, pretrained_path: str, offline: bool) -> Path:
    backbone = multi_task.backbone_name(experiment.model)
    return published.find(pretrained_path, backbone=backbone, data_root=experiment.data_root, offline=offline)


def abstract_variables(experiment: Experiment) -> PyTree:
    """Returns the shapes of the variables, without making any."""
    return jax.eval_shape(lambda key: multi_task.init_variables(experiment.model, key=key), jax.random.key(0))


def backbone_stages(experiment: Experiment, patterns: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    """Returns what patterns may call parts of the backbone, by `patterns.expanded`; nothing where none does."""
    named = any(name in pattern for pattern in patterns for name in ("stride_", "until_"))
    return multi_task.backbone_stages(experiment.model) if named else {}


def source(experiment: Experiment, stream: str, *, training: bool) -> registry.Source:
    """Opens one split of a stream's dataset and checks that its classes are the tasks'.

    Raises:
        UserError: the dataset is not there, or its classes differ from the task's.
    """
    settings = experiment.streams[stream]
    options = _ignore_label(experiment, stream) | dict(settings.options)
    if not training:
        options |= dict(settings.val_options)
    found = registry.build(
        settings.source,
        data_root=experiment.data_root,
        split=settings.train_split if training else settings.val_split,
        **options,
    )
    for task, label in settings.labels.items():
        if label not in found.class_names:
            raise UserError(
                f"config.streams.{stream}.labels gives task {task} the label {label!r}, which source {settings.source} "
                f"does not have; {suggestion(label, found.class_names)}"
            )
        _check_names(experiment, stream, task, label, tuple(found.class_names[label]))
    if training and settings.train_parts > 1:
        found = _part(experiment, stream, found)
    return Subset(found, range(min(SMOKE_EXAMPLES, len(found)))) if experiment.smoke else found


def _part(experiment: Experiment, stream: str, whole: registry.Source) -> registry.Source:
    part, parts = experiment.streams[stream].train_part, experiment.streams[stream].train_parts
    if parts > len(whole):
        raise UserError(
            f"config.streams.{stream} takes part {part} of {parts} of {len(whole)} training images; expected "
            "no more parts than images"
        )
    return Subset(whole, range(part, len(whole), parts))


def classes_of(experiment: Experiment, stream: str, data: registry.Source) -> dict[str, partial.Classes]:
    """Returns, by task, its classes as a stream sees them: their numbers there, and which of them it labels.

    Args:
        experiment: from `build`.
        stream: its name.
        data: an open source of it, or exemplars.

    Raises:
        UserError: config.streams.<stream>.labelled_classes names no class of the task.
    """
    settings = experiment.streams[stream]
    found = {}
    for task, label in settings.labels.items():
        classes = tuple(experiment.tasks[task].classes)
        if not classes:
            continue
        names = tuple(data.class_names[label]) or classes
        known = settings.labelled_classes.get(task) or getattr(data, "labelled_classes", {}).get(label, names)
        if unknown := [name for name in known if name not in classes]:
            raise UserError(
                f"config.streams.{stream}.labelled_classes.{task} names {', '.join(map(str, unknown))}; the task has "
                f"{', '.join(classes)}"
            )
        found[task] = partial.Classes(
            tuple(classes.index(name) for name in names), tuple(name in known for name in classes)
        )
    return found


def _check_names(experiment: Experiment, stream: str, task: str, label: str, names: tuple[str, ...]) -> None:
    """Refuses a stream whose numbers mean other classes than the task's, or none that it can tell."""
    settings, classes = experiment.streams[stream], tuple(experiment.tasks[task].classes)
    if not names and classes and "classes" in registry.options_of(settings.source):
        raise UserError(
            f"stream {stream} labels task {task} by numbers without names; set config.streams.{stream}.options.classes "
            f"to {{{label!r}: {_short(classes)}}}, the task's classes in the order of the numbers"
        )
    if names and names != classes and (len(names) == len(classes) or not set(names) < set(classes)):
        raise UserError(
            f"task {task} has classes {_short(classes)}, but stream {stream} labels {_short(names)}; "
            f"{_advice(task, stream, settings)}"
        )


def _advice(task: str, stream: str, settings: StreamSettings) -> str:
    """Which of the two tables to change: both splits have the stream's, so either leads to an end."""
    to_the_stream_s = f"set config.tasks.{task}.classes to the stream's, in its order"
    if "classes" not in registry.options_of(settings.source):
        return to_the_stream_s
    return (
        f"they must be the same names in the same order: set config.streams.{stream}.options.classes to the task's, if "
        f"these are what the files show, or {to_the_stream_s}"
    )


def _ignore_label(experiment: Experiment, stream: str) -> dict[str, Any]:
    """What the task of a stream's masks calls void, for a source that asks."""
    found = list(ignore_labels(experiment, stream).values())
    is_asked = "ignore_label" in registry.options_of(experiment.streams[stream].source)
    return {"ignore_label": found[0]} if found and is_asked else {}


def ignore_labels(experiment: Experiment, stream: str) -> dict[str, int]:
    """Returns what the tasks of a stream call void in their masks."""
    found = {task: experiment.tasks[task].void for task in experiment.streams[stream].labels}
    return {task: value for task, value in found.items() if value is not None}


def _short(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})"


def train_batches(
    experiment: Experiment,
    stream: str,
    data: registry.Source,
    *,
    seed: int,
    augmented: bool = True,
    batch_size: int | None = None,
    shared: bool = False,
    extra_labels: Mapping[str, str] | None = None,
) -> Any:
    """Returns the endless batches of a stream, from its own training source or from exemplars of it.

    Args:
        experiment: from `build`.
        stream: its name.
        data: what to draw from.
        seed: of order and augmentation.
        augmented: apply the stream's augmentation.
        batch_size: instead of the stream's own.
        shared: with the other processes of the run, of which each prepares its part of every batch.
        extra_labels: key in the batch -> name of a label that `data` has beside those of the stream.
    """
    settings = experiment.streams[stream]
    count: int = batch_size or settings.batch_size
    augment = transforms.Augment(crop=settings.crop)
    if augmented:
        augment = augmentation(f"config.streams.{stream}", settings)
    return pipeline.train_batches(
        data,
        labels=dict(settings.labels) | dict(extra_labels or {}),
        image_size=train_image_size(experiment, stream),
        batch_size=count,
        share=devices.share(count) if shared else (0, 1),
        augment=augment,
        seed=seed,
        max_boxes=settings.max_boxes,
        cache_bytes=experiment.cache_bytes,
        ignore_labels=ignore_labels(experiment, stream),
        classes=classes_of(experiment, stream, data),
    )


def augmentation(where: str, settings: StreamSettings) -> transforms.Augment:
    """Returns how a stream changes its training images.

    Args:
        where: the settings, for the error.
        settings: of the stream.

    Raises:
        UserError: an unknown change, or a value that does not fit.
    """
    check_arguments(f"{where}.augment", settings.augment, transforms.Augment, own=("crop",))
    try:
        return transforms.Augment(**settings.augment, crop=settings.crop)
    except UserError as error:
        raise UserError(f"{where}.{error}") from error


def examples(experiment: Experiment, stream: str, data: registry.Source) -> Iterator[Any]:
    """Yields the examples of a source one by one, in its order, as training would see them without augmentation.

    Args:
        experiment: from `build`.
        stream: its name.
        data: what to read.
    """
    settings = experiment.streams[stream]
    return pipeline.examples(
        data,
        labels=dict(settings.labels),
        image_size=train_image_size(experiment, stream),
        max_boxes=settings.max_boxes,
        crop=settings.crop,
        ignore_labels=ignore_labels(experiment, stream),
        classes=classes_of(experiment, stream, data),
    )


def train_image_size(experiment: Experiment, stream: str) -> int:
    """Returns the side of a stream's training images, px."""
    settings = experiment.streams[stream]
    return settings.train_image_size or settings.image_size or experiment.image_size


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

    They are the first of those that label it, and those whose images label classes that the ones before do not.
    """
    streams = labelling_streams(experiment, task)
    if len(streams) < 2 or not experiment.tasks[task].classes:
        return streams[:1]
    found, known = list(streams[:1]), np.zeros(len(experiment.tasks[task].classes), bool)
    with contextlib.suppress(UserError):  # a dataset that is not there is told where it is read
        for stream in streams:
            data = source(experiment, stream, training=False)
            labelled = np.array(classes_of(experiment, stream, data)[task].labelled)
            if stream not in found and (labelled & ~known).any():
                found.append(stream)
            known |= labelled
    return tuple(found)


def measured_streams(experiment: Experiment, tasks: Iterable[str]) -> dict[str, dict[str, Task]]:
    """Returns, by stream, those of the tasks that are measured on it (`measuring_streams`)."""
    found: dict[str, dict[str, Task]] = {}
    for task in tasks:
        for stream in measuring_streams(experiment, task):
            found.setdefault(stream, {})[task] = experiment.tasks[task]
    return found


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


def eval_batches(experiment: Experiment, stream: str) -> Any:
    """Returns the validation batches of a stream."""
    settings, (image_size, crop) = experiment.streams[stream], view(experiment, stream)
    data = source(experiment, stream, training=False)
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
