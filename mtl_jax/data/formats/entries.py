"""Entries: the output of a format's reader, before images are found and objects are cleaned."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mtl_jax.data.formats.records import Corners, DepthFile, MaskFiles, Polygon, Runs

# Names of folders and files that stand for a split.
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
    """An object as a file has it: a box, polygons or runs; the box may be left to be found from the others."""

    label: str
    xyxy: Corners | None = None
    polygons: tuple[Polygon, ...] = ()
    runs: Runs | None = None
    crowd: bool = False
    area: float | None = None


@dataclasses.dataclass
class Entry:
    """An image as a file names it.

    Attributes:
        image: the file, or a name to look for.
        location: file and place that name it, as errors name them.
        near: folder of that file; None for the dataset's.
        other_name: of the image, where that is not found.
        size: width and height that the labels were made for, px; None where the file does not say.
        shares: coordinates are shares of the image's sides.
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
    """All that a format's reader found.

    Attributes:
        entries: in the files' order.
        names: of the classes of objects, in the format's order; None where it has none.
        tag_names: of the classes and tags of whole images, likewise.
        tags_are_complete: a tag that an image with tags does not list is false, not unknown.
        mask_names: of the values of masks, from 0.
        counts: by name, to be reported.
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
    """Returns the split that the first of some names of folders and files stands for; "" where none does."""
    return next((SPLIT_WORDS[word.lower()] for word in words if word.lower() in SPLIT_WORDS), "")
