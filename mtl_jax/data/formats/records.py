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

# Kind of label on the command line -> label name in sources.
LABELS = {
    "boxes": "detection",
    "masks": "segmentation",
    "classes": "classification",
    "tags": "multi_label",
    "values": "value",
    "depth": "depth",
}
BACKGROUND = "background"  # class 0 of masks rasterised from objects

Corners = tuple[float, float, float, float]  # left, top, right, bottom, px
Polygon = tuple[tuple[float, float], ...]  # x, y of each corner, px


class Runs(NamedTuple):
    """Pixels of an object as COCO run lengths: column-wise, starting with a run of background."""

    counts: tuple[int, ...]
    size: tuple[int, int]  # width, height, px


class Shape(NamedTuple):
    """An object; it covers its polygons or runs, or without them its box."""

    label: str
    xyxy: Corners
    polygons: tuple[Polygon, ...] = ()
    runs: Runs | None = None
    crowd: bool = False  # a group, which is neither trained nor evaluated
    area: float = 0.0  # px², of the outline if the file has it


@runtime_checkable
class MaskFiles(Protocol):
    """Mask files of an image."""

    @property
    def file(self) -> Path:
        """The first file of the mask."""
        ...

    def read_pixels(self, image: Decoded, *, stored: bool) -> Integer[np.ndarray, "height width"]:
        """Returns the upright mask of class indices, `base.missing` where void.

        Args:
            image: image of the mask.
            stored: whether the mask refers to the stored pixels, if its size fits both orientations.

        Raises:
            UserError: the file is unreadable, has another size, or an invalid value.
        """
        ...


class DepthFile(NamedTuple):
    """A depth map in 8-bit or 16-bit grey, 0 where missing."""

    file: Path
    levels_per_metre: float


@dataclasses.dataclass(frozen=True)
class Record:
    """An image and its labels; None means unlabelled, which differs from empty.

    Attributes:
        image: the image file.
        name: unique name in the dataset: the file name, or a path if file names are repeated.
        size: width and height of the upright image, px.
        split: "train", "val", "test", or "" without splits.
        shapes: objects, inside the image.
        mask: class of every pixel.
        class_name: class of the whole image.
        tags: tag -> whether it is true; unlisted tags are unknown.
        value: a number.
        depth: depth of every pixel.
        stored: whether masks and depths refer to the stored pixels, if their size fits both orientations.
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
    """Returns the tags of an image, or without them the classes of its objects; None if unlabelled.

    Classes without objects are not listed.
    """
    if record.tags is not None or record.shapes is None:
        return record.tags
    return {shape.label: True for shape in record.shapes}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset in the common form.

    Attributes:
        format: a key of `FORMATS`.
        path: path of the labels.
        records: records ordered by file name.
        classes: label -> class names, for each available label ("detection", "segmentation", "classification",
            "multi_label", "value", "depth"); an empty tuple for numbers and depths.
        splits: available splits in the order train, val, test; empty without splits.
        reading: counts and warnings of the reader.
    """

    format: str
    path: Path
    records: tuple[Record, ...]
    classes: Mapping[str, tuple[str, ...]]
    splits: tuple[str, ...]
    reading: Reading

    @property
    def kinds(self) -> tuple[str, ...]:
        """Available kinds of label: keys of `LABELS`."""
        return tuple(kind for kind, label in LABELS.items() if label in self.classes)
