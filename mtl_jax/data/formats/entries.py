"""Entries: the output of a format's reader, before images are found and objects are cleaned."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mtl_jax.data.formats.records import Corners, DepthFile, MaskFiles, Polygon, Runs

# Folder and file names of splits.
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "train2017": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "val2017": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "test2017": "test",
}
SPLIT_ORDER = ("train", "val", "test")


@dataclasses.dataclass
class RawShape:
    """An object as read from a file: a box, polygons or runs; without a box, it is computed from the outline."""

    label: str
    xyxy: Corners | None = None
    polygons: tuple[Polygon, ...] = ()
    runs: Runs | None = None
    crowd: bool = False
    area: float | None = None


@dataclasses.dataclass
class Entry:
    """An image and its labels as read from a file.

    Attributes:
        image: the file, or a name to search for.
        location: file and position of the entry, for errors.
        near: folder of the label file; None means the folder of the dataset.
        other_name: alternative name of the image.
        size: width and height of the labelled image, px; None if unknown.
        shares: whether coordinates are relative to the image size.
    """

    image: Path | str
    location: str
    near: Path | None = None
    size: tuple[int, int] | None = None
    split: str = ""
    shapes: list[RawShape] | None = None
    shares: bool = False
    mask: MaskFiles | None = None
    class_name: str | None = None
    tags: Mapping[str, bool] | None = None
    value: float | None = None
    depth: DepthFile | None = None
    other_name: str = ""


@dataclasses.dataclass
class Annotations:
    """Output of a format's reader.

    Attributes:
        entries: entries in file order.
        names: class names of objects in the order of the format; None without an order.
        tag_names: class and tag names of whole images in the order of the format; None without an order.
        tags_are_complete: whether an unlisted tag is false instead of unknown.
        mask_names: class names of mask values, from 0.
        counts: counts by name, for the report.
        notes: warnings.
    """

    entries: list[Entry]
    names: Sequence[str] | None = None
    tag_names: Sequence[str] | None = None
    tags_are_complete: bool = True
    mask_names: Sequence[str] = ()
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    notes: list[str] = dataclasses.field(default_factory=list)


def split_of(*words: str) -> str:
    """Returns the split of the first folder or file name that denotes one; "" if none does."""
    return next((SPLIT_WORDS[word.lower()] for word in words if word.lower() in SPLIT_WORDS), "")
