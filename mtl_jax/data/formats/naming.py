"""Naming of classes that a dataset only numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from mtl_jax.data.formats.records import Dataset, Record


def is_by_number(names: Sequence[str]) -> bool:
    """Returns whether classes have the default names "0", "1", …"""
    return len(names) > 0 and tuple(names) == tuple(map(str, range(len(names))))


def with_names(dataset: Dataset, label: str, names: Sequence[str]) -> Dataset:
    """Replaces class numbers of a dataset by names; classes with names are unchanged.

    Args:
        dataset: dataset as read.
        label: label of the classes, a key of its `classes`.
        names: names in the order of the numbers; more names than classes are allowed.
    """
    numbers = dataset.classes.get(label, ())
    if not is_by_number(numbers) or len(names) < len(numbers):
        return dataset
    renamed = dict(zip(numbers, names, strict=False))
    classes = {**dataset.classes, label: tuple(renamed.values())}
    records = dataset.records
    if label == "detection":
        records = tuple(_renamed(record, renamed) for record in records)
        classes["multi_label"] = tuple(renamed.values())
    return dataclasses.replace(dataset, records=records, classes=classes)


def _renamed(record: Record, names: Mapping[str, str]) -> Record:
    shapes = tuple(shape._replace(label=names[shape.label]) for shape in record.shapes or ())
    return record if record.shapes is None else dataclasses.replace(record, shapes=shapes)
