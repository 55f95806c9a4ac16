"""Data inspection: reads every image once and lists suspicious images and labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mtl_jax.data import findings, leakage, opened, survey
from mtl_jax.data.facts import SampleFacts
from mtl_jax.data.findings import abbreviated
from mtl_jax.data.label_shapes import shape_named
from mtl_jax.data.label_shapes.shape import LabelShape
from mtl_jax.data.sources import registry
from mtl_jax.data.sources.base import counted
from mtl_jax.data.survey import Survey
from mtl_jax.own_data.summary import DatasetSummary, options

SPLITS = ("train", "val")
MIN_IMAGES = 5  # training images; classes with fewer are reported


class Inspected(NamedTuple):
    """Result of the inspection of a dataset.

    Attributes:
        dataset: sizes, classes and counts.
        sources: split -> samples.
        surveys: split -> facts of the samples.
        notes: messages of the reader about the files and dropped labels.
        suspicious: messages about suspicious images and labels.
    """

    dataset: DatasetSummary
    sources: Mapping[str, Any]
    surveys: Mapping[str, Survey]
    notes: tuple[str, ...]
    suspicious: tuple[str, ...]


def inspect(dataset: DatasetSummary, *, cache: Path | None, on_progress: survey.OnProgress) -> Inspected:
    """Inspects every image and label of a dataset.

    Args:
        dataset: the dataset.
        cache: cache folder of surveys; None disables caching.
        on_progress: called with the numbers of inspected and of all images.

    Raises:
        UserError: the dataset cannot be opened.
    """
    sources, surveys, source_options = {}, {}, options(dataset.request)
    for split in SPLITS:
        with opened.recording() as files:
            sources[split] = registry.build("labels", data_root="/", split=split, **source_options)
        name = f"labels {source_options} {split}"
        surveys[split] = survey.look(sources[split], files=files, name=name, cache=cache, on_progress=on_progress)
    notes = tuple(f"{dataset.request.name}: {note}" for note in surveys["train"].reading.notes)
    return Inspected(dataset, sources, surveys, notes, tuple(_suspicious(dataset, surveys)))


def leaks(inspected: Sequence[Inspected]) -> list[str]:
    """Returns messages about validation images that any dataset trains on."""
    train, val = (
        {inspection.dataset.request.name: inspection.surveys[split].samples for inspection in inspected}
        for split in SPLITS
    )
    messages = []
    for name in val:
        matches = leakage.find_seen(train, {name: val[name]})
        if matches:
            validation_image, training_image = matches[0]
            validation_id, training_id = (
                val[name][validation_image.index].id,
                train[training_image.stream][training_image.index].id,
            )
            messages.append(
                f"{name}: {counted(len(matches), 'validation images')} of {len(val[name])} in training too (first: "
                f"{validation_id}, which {training_image.stream} trains on as {training_id}); take them out of one "
                "of the two"
            )
    return messages


def _suspicious(dataset: DatasetSummary, surveys: Mapping[str, Survey]) -> Iterator[str]:
    name, label = dataset.request.name, dataset.label
    for split, surveyed in surveys.items():
        location = f"{name}, {split}"
        if surveyed.errors:
            yield f"{location}: {findings.broken(surveyed.errors)}"
        empty = [sample for sample in surveyed.samples if _is_empty(sample, label, dataset.classes)]
        if empty:
            noun = counted(len(empty), _shape(empty[0], label).empty)
            yield f"{location}: {noun} ({abbreviated([sample.id for sample in empty])}): look whether that is right"
        yield from findings.odd_images(surveyed, (label,), location=location)
    figures = findings.label_figures(surveys["train"], label, dataset.classes)
    classes = figures.get("classes", {})
    rare = [class_name for class_name, count in classes.items() if count["images"] < MIN_IMAGES]
    if rare:
        yield f"{name}: fewer than {MIN_IMAGES} training images show {abbreviated(rare)}: hardly enough to learn it"
    unseen = findings.never_shown(findings.label_figures(surveys["val"], label, dataset.classes))
    if unseen:
        yield f"{name}: no validation image shows {abbreviated(unseen)}: not measured"


def _is_empty(sample: SampleFacts, label: str, classes: Sequence[str]) -> bool:
    return _shape(sample, label).is_empty(sample.labels[label], classes)


def _shape(sample: SampleFacts, label: str) -> LabelShape:
    return shape_named(sample.labels[label]["kind"])
