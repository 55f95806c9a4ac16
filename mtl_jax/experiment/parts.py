"""From a config (or the one saved in a checkpoint) to the parts it names: tasks, network, sources, streams."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax import config as config_lib
from mtl_jax import tasks as tasks_lib
from mtl_jax.config.checks import suggestion
from mtl_jax.config.run_settings import RunSettings
from mtl_jax.config.stream_settings import StreamSettings
from mtl_jax.data import opened, partial, sampling
from mtl_jax.data.sources import registry
from mtl_jax.data.sources.base import Subset
from mtl_jax.errors import UserError
from mtl_jax.models import multi_task
from mtl_jax.tasks.base import Task

SMOKE_EXAMPLES = 8  # images of each split that a smoke run touches


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Tasks, network and streams of a configuration. `streams` and the sizes are the config's own."""

    tasks: Mapping[str, Task]
    model: Any
    streams: Mapping[str, StreamSettings]
    used_streams: tuple[str, ...]  # those of the order's stages, as it comes to them
    stage_streams: Mapping[str, tuple[str, ...]]  # of the order's stages
    data_root: Path
    image_size: int
    cache_bytes: int
    smoke: bool
    held_out_percent: float = 0.0  # of each stream's training images, which no step sees
    # What `source` has opened, with the files that were read for it.
    opened: dict[tuple[Any, ...], tuple[registry.Source, tuple[opened.Opened, ...]]] = dataclasses.field(
        init=False, default_factory=dict, compare=False, repr=False
    )


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
        stage_streams={stage: settings.stages[stage].streams for stage in settings.order},
        data_root=data_root,
        image_size=settings.image_size,
        cache_bytes=int(settings.cache_gb * 1e9),
        smoke=settings.smoke,
        held_out_percent=settings.held_out_percent,
    )


def _used_streams(settings: RunSettings) -> tuple[str, ...]:
    """The streams that the order trains on; all of a config without an order."""
    stream_names = (stream for stage in settings.order for stream in settings.stages[stage].streams)
    return tuple(dict.fromkeys(stream_names if settings.order else settings.streams))


def check_crops(streams: Mapping[str, StreamSettings], tasks: Mapping[str, Task]) -> None:
    """Checks that no stream crops images whose labels have places in them.

    Raises:
        UserError: one does.
    """
    for name, settings in streams.items():
        located = [task for task in settings.labels if task in tasks and tasks[task].readout != "pooled"]
        if settings.crop and located:
            raise UserError(
                f"config.streams.{name}.crop: expected False with task {located[0]}, whose "
                f"{tasks[located[0]].kind} labels lie in parts of images that it leaves away, found True; it is "
                "for labels of whole images"
            )


def _opened_once(open_source: Callable[..., registry.Source]) -> Callable[..., registry.Source]:
    """Makes a function that opens a stream's dataset give what it has opened before."""

    @functools.wraps(open_source)
    def opened_once(experiment: Experiment, stream: str, **options: bool) -> registry.Source:
        key = (stream, *sorted(options.items()))
        if key not in experiment.opened:
            with opened.recording() as files:
                opened_source = open_source(experiment, stream, **options)
            experiment.opened[key] = opened_source, tuple(files)
        opened_source, files_read = experiment.opened[key]
        opened.note_again(files_read)
        return opened_source

    return opened_once


@_opened_once
def source(experiment: Experiment, stream: str, *, training: bool, held_out: bool = False) -> registry.Source:
    """Opens one split of a stream's dataset and checks that its classes are the tasks'.

    Args:
        experiment: from `build`.
        stream: its name.
        training: the training images, without those that are held out; else the validation images.
        held_out: of the training images those that are held out, all where none are.

    Raises:
        UserError: the dataset is not there, or its classes differ from the task's.
    """
    settings = experiment.streams[stream]
    options = _ignore_label(experiment, stream) | dict(settings.options)
    if not training:
        options |= dict(settings.val_options)
    data = registry.build(
        settings.source,
        data_root=experiment.data_root,
        split=settings.train_split if training else settings.val_split,
        **options,
    )
    for task, label in settings.labels.items():
        if label not in data.class_names:
            raise UserError(
                f"config.streams.{stream}.labels.{task}: expected a label of source {settings.source}, found "
                f"{label!r}; {suggestion(label, data.class_names)}"
            )
        _check_names(experiment, stream, task, label, _named(experiment, task, data.class_names[label]))
    if training and settings.train_parts > 1:
        data = _subset(experiment, stream, data)
    if training and experiment.held_out_percent:
        data = sampling.held_out(data, experiment.held_out_percent)[0 if held_out else 1]
    return Subset(data, range(min(SMOKE_EXAMPLES, len(data)))) if experiment.smoke else data


def _subset(experiment: Experiment, stream: str, data: registry.Source) -> registry.Source:
    part_index, part_count = experiment.streams[stream].train_part, experiment.streams[stream].train_parts
    if part_count > len(data):
        raise UserError(
            f"config.streams.{stream}.train_parts: expected at most {len(data)}, the number of training images, found "
            f"{part_count}"
        )
    return Subset(data, range(part_index, len(data), part_count))


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
    by_task = {}
    for task, label in settings.labels.items():
        classes = tuple(experiment.tasks[task].classes)
        if not classes:
            continue
        names = _named(experiment, task, data.class_names[label]) or classes
        labelled_names = settings.labelled_classes.get(task) or getattr(data, "labelled_classes", {}).get(label, names)
        labelled_names = _named(experiment, task, labelled_names)
        if unknown := [name for name in labelled_names if name not in classes]:
            raise UserError(
                f"config.streams.{stream}.labelled_classes.{task}: expected classes of the task "
                f"({', '.join(classes)}), found {', '.join(map(str, unknown))}"
            )
        by_task[task] = partial.Classes(
            tuple(classes.index(name) for name in names), tuple(name in labelled_names for name in classes)
        )
    return by_task


def _named(experiment: Experiment, task: str, names: Iterable[str]) -> tuple[str, ...]:
    """A dataset's classes by the names that the task has for them."""
    renamed = experiment.tasks[task].renamings
    return tuple(renamed.get(name, name) for name in names)


def _check_names(experiment: Experiment, stream: str, task: str, label: str, names: tuple[str, ...]) -> None:
    """Refuses a stream whose numbers mean other classes than the task's, or unknown ones."""
    settings, classes = experiment.streams[stream], tuple(experiment.tasks[task].classes)
    if not names and classes and "classes" in registry.options_of(settings.source):
        raise UserError(
            f"config.streams.{stream}.options.classes: expected names of the numbers by which it labels task {task}, "
            f"found none; set it to {{{label!r}: {_short(classes)}}}, the task's classes in the order of the numbers"
        )
    if not set(names) <= set(classes):
        raise UserError(
            f"stream {stream}: expected the classes of task {task}, {_short(classes)}, found {_short(names)}; "
            f"{_advice(task, stream, settings)}"
        )


def _advice(task: str, stream: str, settings: StreamSettings) -> str:
    """Which of the two tables to change: both splits have the stream's, so either leads to an end."""
    to_the_stream_s = f"set config.tasks.{task}.classes to the stream's"
    if "classes" not in registry.options_of(settings.source):
        return to_the_stream_s
    return (
        f"they must be names of its classes: set config.streams.{stream}.options.classes to the task's, if these are "
        f"what the files show, or {to_the_stream_s}"
    )


def _ignore_label(experiment: Experiment, stream: str) -> dict[str, Any]:
    """The void value of the task of a stream's masks, for a source that takes it."""
    labels = list(ignore_labels(experiment, stream).values())
    is_asked = "ignore_label" in registry.options_of(experiment.streams[stream].source)
    return {"ignore_label": labels[0]} if labels and is_asked else {}


def ignore_labels(experiment: Experiment, stream: str) -> dict[str, int]:
    """Returns what the tasks of a stream call void in their masks."""
    by_task = {task: experiment.tasks[task].void for task in experiment.streams[stream].labels}
    return {task: value for task, value in by_task.items() if value is not None}


def _short(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})"
