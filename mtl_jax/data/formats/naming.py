"""Gives names to classes that a dataset calls by number."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from mtl_jax.data.formats.records import Dataset, Record


def is_by_number(names: Sequence[str]) -> bool:
    """Whether classes are called "0", "1", … as no file names them."""
    return len(names) > 0 and tuple(names) == tuple(map(str, range(len(names))))


def with_names(dataset: Dataset, label: str, names: Sequence[str]) -> Dataset:
    """Returns a dataset whose classes have names by their number; unchanged where they have names of their own.

    Args:
        dataset: as read.
        label: that the names are for, a key of its `classes`.
        names: in the order of the numbers; they may be more.
    """
    names_before = dataset.classes.get(label, ())
    if not is_by_number(names_before) or len(names) < len(names_before):
        return dataset
    renamed = dict(zip(names_before, names, strict=False))
    classes = {**dataset.classes, label: tuple(renamed.values())}
    records = dataset.records
    if label == "detection":
        records = tuple(_renamed(record, renamed) for record in records)
        classes["multi_label"] = tuple(renamed.values())
    return dataclasses.replace(dataset, records=records, classes=classes)


def _renamed(record: Record, names: Mapping[str, str]) -> Record:
    shapes = tuple(shape._replace(label=names[shape.label]) for shape in record.shapes or ())
    return record if record.shapes is None else dataclasses.replace(record, shapes=shapes)
