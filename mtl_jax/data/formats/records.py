"""Records: the common form of every label format, one for each image, in pixels of the upright image."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer

from mtl_jax.data.images import Decoded
from mtl_jax.data.sources.base import Reading

# What a user calls a kind of label -> what a source calls it.
LABELS = {
    "boxes": "detection",
    "masks": "segmentation",
    "classes": "classification",
    "tags": "multi_label",
    "values": "value",
    "depth": "depth",
}
BACKGROUND = "background"  # class 0 of masks that are painted from objects

Corners = tuple[float, float, float, float]  # left, top, right, bottom, px
Polygon = tuple[tuple[float, float], ...]  # x, y of each corner, px


class Runs(NamedTuple):
    """An object's pixels as run lengths, COCO's way: down the columns, the first run outside."""

    counts: tuple[int, ...]
    size: tuple[int, int]  # width, height, px


class Shape(NamedTuple):
    """One object. What it covers: its polygons or its runs, or else its box."""

    label: str
    xyxy: Corners
    polygons: tuple[Polygon, ...] = ()
    runs: Runs | None = None
    crowd: bool = False  # a group, which is neither learnt nor counted
    area: float = 0.0  # px²; of the outline where the file says it


@runtime_checkable
class MaskFiles(Protocol):
    """Files of the class of every pixel of an image."""

    @property
    def file(self) -> Path:
        """The first file of the mask."""
        ...

    def read_pixels(self, image: Decoded, *, stored: bool) -> Integer[np.ndarray, "height width"]:
        """Returns the upright mask: indices of the dataset's classes of masks, `base.missing` where void.

        Args:
            image: that it belongs to.
            stored: where both sizes fit, the mask is of the pixels as stored.

        Raises:
            UserError: unreadable, of another size, or with a value that is no class; names the file.
        """
        ...


class DepthFile(NamedTuple):
    """A depth map: grey of 8 or 16 bits, 0 where missing."""

    file: Path
    levels_per_metre: float


@dataclasses.dataclass(frozen=True)
class Record:
    """One image and its labels. What is None is not labelled, which is not the same as empty.

    Attributes:
        image: the file.
        name: unique within the dataset; the file's name, or its path where two images have one name.
        size: width and height of the upright image, px.
        split: "train", "val", "test", or "" where the dataset has no splits.
        shapes: objects, inside the image.
        mask: the class of every pixel.
        class_name: of the whole image.
        tags: whether each is true of the image; one that is not listed is unknown.
        value: a number.
        depth: of every pixel.
        stored: masks and depths whose size fits both are of the pixels as stored, not as EXIF turns them.
    """

    image: Path
    name: str
    size: tuple[int, int]
    split: str = ""
    shapes: tuple[Shape, ...] | None = None
    mask: MaskFiles | None = None
    class_name: str | None = None
    tags: Mapping[str, bool] | None = None
    value: float | None = None
    depth: DepthFile | None = None
    stored: bool = False


def tags_of(record: Record) -> Mapping[str, bool] | None:
    """Returns which tags are true of an image: its own, or the classes of its objects; None where nobody looked.

    Classes that its objects do not have are not listed.
    """
    if record.tags is not None or record.shapes is None:
        return record.tags
    return {shape.label: True for shape in record.shapes}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset as read.

    Attributes:
        format: a key of `FORMATS`.
        path: that was read.
        records: ordered by file name.
        classes: of each label that the dataset can give, by a source's name for it ("detection", "segmentation",
            "classification", "multi_label", "value", "depth"); an empty tuple for numbers and depths.
        splits: those found, in the order train, val, test; empty where the dataset has none.
        reading: what was counted, and warnings.
    """

    format: str
    path: Path
    records: tuple[Record, ...]
    classes: Mapping[str, tuple[str, ...]]
    splits: tuple[str, ...]
    reading: Reading

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of label that the dataset can give: keys of `LABELS`."""
        return tuple(kind for kind, label in LABELS.items() if label in self.classes)
