"""Inspection of the user's data: reads every image once and lists what seems wrong."""

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
from mtl_jax.own_data.found import Found, options

SPLITS = ("train", "val")
FEW = 5  # training images of a class that are hardly enough


class Inspected(NamedTuple):
    """One dataset.

    Attributes:
        found: sizes, classes, counts.
        sources: split -> its samples.
        surveys: split -> what was seen of them.
        notes: how the files were read, and what was left out, each a sentence.
        suspicious: what seems wrong, each a sentence.
    """

    found: Found
    sources: Mapping[str, Any]
    surveys: Mapping[str, Survey]
    notes: tuple[str, ...]
    suspicious: tuple[str, ...]


def inspect(found: Found, *, cache: Path | None, on_progress: survey.OnProgress) -> Inspected:
    """Looks at every image and label of a dataset.

    Args:
        found: the dataset.
        cache: folder in which to keep what was seen; None keeps nothing.
        on_progress: is called with images looked at, and all.

    Raises:
        UserError: the dataset cannot be opened.
    """
    sources, surveys, given = {}, {}, options(found.asked)
    for split in SPLITS:
        with opened.recording() as files:
            sources[split] = registry.build("labels", data_root="/", split=split, **given)
        name = f"labels {given} {split}"
        surveys[split] = survey.look(sources[split], files=files, name=name, cache=cache, on_progress=on_progress)
    notes = tuple(f"{found.asked.name}: {note}" for note in surveys["train"].reading.notes)
    return Inspected(found, sources, surveys, notes, tuple(_suspicious(found, surveys)))


def leaks(inspected: Sequence[Inspected]) -> list[str]:
    """Returns what to say of validation images that any dataset trains on."""
    train, val = ({each.found.asked.name: each.surveys[split].samples for each in inspected} for split in SPLITS)
    said = []
    for name in val:
        same = leakage.find_seen(train, {name: val[name]})
        if same:
            validated, trained = same[0]
            here, there = val[name][validated.index].id, train[trained.stream][trained.index].id
            said.append(
                f"{name}: {counted(len(same), 'validation images')} of {len(val[name])} in training too (first: "
                f"{here}, which {trained.stream} trains on as {there}): take them out of one of the two"
            )
    return said


def _suspicious(found: Found, surveys: Mapping[str, Survey]) -> Iterator[str]:
    name, label = found.asked.name, found.label
    for split, seen in surveys.items():
        location = f"{name}, {split}"
        if seen.errors:
            yield f"{location}: {findings.broken(seen.errors)}"
        empty = [sample for sample in seen.samples if _is_empty(sample, label, found.classes)]
        if empty:
            what = counted(len(empty), _shape(empty[0], label).empty)
            yield f"{location}: {what} ({abbreviated([sample.id for sample in empty])}): look whether that is right"
        yield from findings.odd_images(seen, (label,), location=location)
    figures = findings.label_figures(surveys["train"], label, found.classes)
    classes = figures.get("classes", {})
    rare = [each for each, count in classes.items() if count["images"] < FEW]
    if rare:
        yield f"{name}: fewer than {FEW} training images show {abbreviated(rare)}: hardly enough to learn it"
    unseen = findings.never_shown(findings.label_figures(surveys["val"], label, found.classes))
    if unseen:
        yield f"{name}: no validation image shows {abbreviated(unseen)}: not measured"


def _is_empty(sample: SampleFacts, label: str, classes: Sequence[str]) -> bool:
    return _shape(sample, label).is_empty(sample.labels[label], classes)


def _shape(sample: SampleFacts, label: str) -> LabelShape:
    return shape_named(sample.labels[label]["kind"])
