"""Record of a run's data, made before its first step, and rejection of data that it cannot learn from."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from mtl_jax import experiment
from mtl_jax.config.run_settings import RunSettings
from mtl_jax.data import findings, leakage, opened, survey
from mtl_jax.data.sources.base import Subset
from mtl_jax.data.sources.registry import Source
from mtl_jax.data.survey import Survey
from mtl_jax.errors import UserError
from mtl_jax.experiment import Experiment
from mtl_jax.kernels import user_cache
from mtl_jax.runtime import devices
from mtl_jax.workdir import files

FILE = "data.json"
SMOKE_IMAGES = 256  # of each split that a smoke run looks at
# In a checkpoint: numbers, digests of all and for each task, and the scale of greyscale of 16-bit files.
CHECKPOINT_FIELDS = ("images", "looked_at", "digest", "tasks", "grey_bits")
MAX_WARNINGS = 12  # warnings in the log; the file has them all
TOLD_SECONDS = 10.0  # between two lines while the images of a split are looked at
SPLITS = {"train": True, "val": False}  # -> whether it is for training


class _Split(NamedTuple):
    source: Source  # the whole of it
    survey: Survey
    figures: dict[str, Any]


class _Settings(TypedDict):
    most: int
    cache: Path | None
    on_progress: survey.OnProgress


class DataRecord(NamedTuple):
    """Record of the data of a run."""

    streams: dict[str, dict[str, Any]]  # stream -> split -> figures
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """Returns one line about each split, and the warnings."""
        warning_lines = [
            f"{stream} {split}: {findings.line(figures)}"
            for stream, splits in self.streams.items()
            for split, figures in splits.items()
        ]
        warning_lines += [f"warning: {warning}" for warning in self.warnings[:MAX_WARNINGS]]
        remainder = len(self.warnings) - MAX_WARNINGS
        return [*warning_lines, f"{remainder} more warnings are in {FILE}"] if remainder > 0 else warning_lines

    def digests(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Returns stream -> split -> `CHECKPOINT_FIELDS`, which a checkpoint keeps."""
        return {
            stream: {split: {name: figures[name] for name in CHECKPOINT_FIELDS} for split, figures in splits.items()}
            for stream, splits in self.streams.items()
        }

    def write(self, workdir: Path) -> None:
        """Writes all of it as `data.json`."""
        tree = files.without_nan({"streams": self.streams, "warnings": list(self.warnings)})
        # Escaped, as names of files need not be UTF-8.
        files.replace_text(workdir / FILE, json.dumps(tree, indent=1, allow_nan=False) + "\n")


def examine(
    setup: Experiment,
    *,
    most: int = 0,
    tolerated_leakage_percent: float = 0.0,
    cache: Path | None = None,
    on_progress: survey.OnProgress = lambda completed, total: None,
) -> DataRecord:
    """Looks at both splits of the streams that the order uses.

    Args:
        setup: the experiment.
        most: images of each split to decode; 0 means all. A smoke run decodes few.
        tolerated_leakage_percent: as in `leakage.refuse`.
        cache: folder in which to keep what was seen; None keeps nothing.
        on_progress: is called now and then with the images of a split that were looked at, and all of it.

    Raises:
        UserError: datasets that are not there, files that cannot be read (all are named, or counted), images in both
            splits, or a training split without any label of a task.
    """
    settings: _Settings = {"most": most, "cache": cache, "on_progress": on_progress}
    splits_by_stream: dict[str, dict[str, _Split]] = {}
    errors: list[str] = []
    survey_by_name: dict[str, Survey] = {}  # streams may share a dataset
    for stream in setup.used_streams:
        for split, training in SPLITS.items():
            try:
                split_record = _look(setup, stream, training, survey_by_name, settings)
            except UserError as error:
                errors.append(str(error))
                continue
            errors += split_record.survey.errors
            splits_by_stream.setdefault(stream, {})[split] = split_record
    if errors:
        raise UserError(findings.broken(list(dict.fromkeys(errors))))
    _refuse_leaks(splits_by_stream, tolerated_leakage_percent)
    _refuse_nothing_to_learn(setup, splits_by_stream)
    return DataRecord(
        {
            stream: {split: record.figures for split, record in splits.items()}
            for stream, splits in splits_by_stream.items()
        },
        tuple(dict.fromkeys(warning for warning in _warnings(setup, splits_by_stream) if warning)),
    )


def validation_digests(
    setup: Experiment, streams: Iterable[str], *, most: int = 0, cache: Path | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns what `DataRecord.digests` would, of some streams' validation images alone.

    Args:
        setup: the experiment.
        streams: their names.
        most: as in `examine`.
        cache: as in `examine`.

    Raises:
        UserError: a dataset that is not there.
    """
    settings: _Settings = {"most": most, "cache": cache, "on_progress": lambda completed, total: None}
    survey_by_name: dict[str, Survey] = {}
    digests = {stream: _look(setup, stream, False, survey_by_name, settings).figures for stream in streams}
    return {stream: {"val": {name: figures[name] for name in CHECKPOINT_FIELDS}} for stream, figures in digests.items()}


def validation_images(setup: Experiment, streams: Iterable[str], *, cache: Path | None = None) -> set[str]:
    """Returns the digests (`facts.image_digest`) of some streams' validation images.

    Args:
        setup: the experiment.
        streams: their names.
        cache: as in `examine`.

    Raises:
        UserError: a dataset that is not there.
    """
    settings: _Settings = {"most": 0, "cache": cache, "on_progress": lambda count, total: None}
    looked: dict[str, Survey] = {}
    surveys = [_look(setup, stream, False, looked, settings).survey for stream in streams]
    return {sample.pixels for survey in surveys for sample in survey.samples}


def _look(
    setup: Experiment, stream: str, training: bool, survey_by_name: dict[str, Survey], settings: _Settings
) -> _Split:
    """Looks at one split, unless a stream before it had the same dataset."""
    most = min(settings["most"] or SMOKE_IMAGES, SMOKE_IMAGES) if setup.smoke else settings["most"]
    with opened.recording() as files:
        source = experiment.source(setup, stream, training=training)
        source = source.source if setup.smoke and isinstance(source, Subset) else source
        name = _name(setup, stream, training)
        if name not in survey_by_name:
            survey_by_name[name] = survey.look(source, files=files, name=name, **{**settings, "most": most})
    surveyed = survey_by_name[name]
    figures = findings.figures(surveyed, _classes(setup, stream, source))
    labels = setup.streams[stream].labels
    figures["tasks"] = {task: surveyed.digest([label]) for task, label in labels.items()}
    return _Split(source, surveyed, figures)


def cache_folder() -> Path:
    """Returns the folder in which what was seen is kept."""
    return user_cache.cache_dir() / "data"


def _name(setup: Experiment, stream: str, training: bool) -> str:
    """Options that decide, besides its files, which samples a split has."""
    settings = setup.streams[stream]
    split = settings.train_split if training else settings.val_split
    void = experiment.ignore_labels(setup, stream)
    location = [settings.source, settings.options, void, split, str(setup.data_root.absolute())]
    if training and settings.train_parts > 1:
        location += [settings.train_part, settings.train_parts]
    if training and setup.held_out_percent:
        location.append(setup.held_out_percent)
    if not training and settings.val_options:
        location.append(settings.val_options)
    return json.dumps(location, sort_keys=True, default=str)


def _classes(setup: Experiment, stream: str, source: Source) -> dict[str, tuple[str, ...]]:
    labels = setup.streams[stream].labels
    return {label: tuple(source.class_names[label] or setup.tasks[task].classes) for task, label in labels.items()}


def _refuse_leaks(splits_by_stream: Mapping[str, Mapping[str, _Split]], tolerated_percent: float) -> None:
    training, validation = (
        {stream: splits[name].source for stream, splits in splits_by_stream.items()} for name in SPLITS
    )
    leaks = None  # where not all was looked at, files are compared
    if all(record.survey.complete for splits in splits_by_stream.values() for record in splits.values()):
        training_samples, validated = (
            {stream: splits[name].survey.samples for stream, splits in splits_by_stream.items()} for name in SPLITS
        )
        leaks = leakage.find_seen(training_samples, validated)
    leakage.refuse(training, validation, leaks=leaks, tolerated_percent=tolerated_percent)


def _labels(setup: Experiment, splits_by_stream: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    """Yields stream, task and label name of every label that is used."""
    for stream in splits_by_stream:
        for task, label in setup.streams[stream].labels.items():
            yield stream, task, label


def _refuse_nothing_to_learn(setup: Experiment, splits_by_stream: Mapping[str, Mapping[str, _Split]]) -> None:
    for stream, task, label in _labels(setup, splits_by_stream):
        train = splits_by_stream[stream]["train"]
        location = f"stream {stream}"
        problem = findings.nothing_to_learn(train.figures, task=task, label=label, location=location)
        if problem and train.survey.complete:
            raise UserError(problem)


def _warnings(setup: Experiment, splits_by_stream: Mapping[str, Mapping[str, _Split]]) -> Iterable[str]:
    for stream, splits in splits_by_stream.items():
        notes_by_split = {split: record.survey.reading.notes for split, record in splits.items()}
        common = [note for note in notes_by_split["train"] if note in notes_by_split["val"]]
        yield from (f"stream {stream}: {note}" for note in common)
        for split, record in splits.items():
            location = f"stream {stream}, {split}"
            yield from (f"{location}: {note}" for note in notes_by_split[split] if note not in common)
            yield from findings.odd_images(record.survey, tuple(record.figures["labels"]), location=location)
    training_figures: dict[str, list[Mapping[str, Any]]] = {}
    for stream, task, label in _labels(setup, splits_by_stream):
        train, val = splits_by_stream[stream]["train"], splits_by_stream[stream]["val"]
        if train.survey.complete:
            training_figures.setdefault(task, []).append(train.figures["labels"][label])
        if val.survey.complete:
            yield findings.hardly_measured(val.figures, task=task, label=label, location=f"stream {stream}")
    for task, figures in training_figures.items():
        yield findings.classes_never_shown(figures, task=task)


def look(config: RunSettings, setup: Experiment) -> DataRecord:
    """Looks at all data of a run, and says in the log what is there.

    Args:
        config: resolved.
        setup: what it describes.

    Raises:
        UserError: as `examine`.
    """
    last_report = time.monotonic()

    def still_looking(completed: int, total: int) -> None:
        nonlocal last_report
        if time.monotonic() - last_report > TOLD_SECONDS:
            last_report = time.monotonic()
            log_line(f"{completed} of {total} images looked at")

    record = examine(
        setup,
        most=config.survey_images,
        tolerated_leakage_percent=config.tolerated_leakage_percent,
        cache=cache_folder(),
        on_progress=still_looking,
    )
    for line in record.lines():
        log_line(line)
    return record


def log_line(line: str) -> None:
    """Says something of the data in the log, in the first process of a run alone."""
    if devices.is_primary():
        print(f"data: {line}", file=sys.stderr, flush=True)
