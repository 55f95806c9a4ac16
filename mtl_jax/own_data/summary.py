"""Dataset summary: sizes, classes and counts, from which training settings are chosen."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, median, quantiles
from typing import Any

import numpy as np

from mtl_jax.data.formats import LABELS, Record, naming, splitting
from mtl_jax.data.sources import registry
from mtl_jax.errors import UserError
from mtl_jax.own_data.request import Request

SAMPLED_IMAGES = 48  # training images whose masks or depths are read


@dataclasses.dataclass(frozen=True)
class DatasetSummary:
    """Sizes, classes and counts of a dataset.

    Attributes:
        request: request of the command line.
        format: a key of `formats.FORMATS`.
        classes: class names in label order; empty for numbers and depths.
        train: number of training images.
        val: number of validation images.
        splits: description of the splits.
        sizes: width and height of every training image, px.
        counts: class -> training boxes, images, or pixels of the sampled images.
        box_shares: root of the area of each training box, relative to the longer side of its image.
        most_boxes: largest number of boxes in an image.
        center: median of the training numbers, 0 without any.
        scale: mean absolute deviation from the median.
        farthest: largest depth, m.
        notes: warnings of the reader.
    """

    request: Request
    format: str
    classes: tuple[str, ...]
    train: int
    val: int
    splits: str
    sizes: tuple[tuple[int, int], ...]
    counts: dict[str, int]
    box_shares: tuple[float, ...] = ()
    most_boxes: int = 0
    center: float = 0.0
    scale: float = 1.0
    farthest: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Name of the label in the source."""
        return LABELS[self.request.kind]

    @property
    def long_side(self) -> int:
        """Median longer side of the training images, px."""
        return round(median(max(size) for size in self.sizes))


def options(request: Request) -> dict[str, Any]:
    """Returns the options of the source `labels` for a dataset, without default values."""
    values = {"val_share": request.val_share, "annotated_on": request.annotated_on}
    changed_options = {name: value for name, value in values.items() if value != Request._field_defaults[name]}
    return {"path": request.path, "read_as": request.kind, **changed_options}


def with_names(dataset: DatasetSummary, names: Sequence[str], *, of: str) -> DatasetSummary:
    """Returns a dataset whose masks or boxes, if their files only number classes, have those of a task in its order.

    Args:
        dataset: a summary; classes with names are unchanged.
        names: classes of the task.
        of: name of the task, for a note.

    Raises:
        UserError: there are more numbers than classes of the task.
    """
    numbers = dataset.classes
    if dataset.label not in ("segmentation", "detection") or not naming.is_by_number(numbers):
        return dataset
    if numbers == tuple(names[: len(numbers)]) or not names:
        return dataset
    if len(numbers) > len(names):
        raise UserError(
            f"{dataset.request}: its files number {len(numbers)} classes and name none, and {of} has {len(names)}; "
            "name them in classes.txt next to the labels, a line for each"
        )
    named = dict(zip(numbers, names, strict=False))
    pairs = ", ".join(f"{number} {name}" for number, name in named.items())
    counts = {named.get(number, number): count for number, count in dataset.counts.items()}
    notes = (*dataset.notes, f"numbers are taken as the classes of {of}, in their order: {pairs}.")
    return dataclasses.replace(dataset, classes=tuple(named.values()), counts=counts, notes=notes)


def summarise(request: Request) -> DatasetSummary:
    """Summarises a dataset from its labels and a sample of its masks or depths.

    Args:
        request: kind and path of the labels.

    Raises:
        UserError: there are no labels of that kind, or they cannot be read.
    """
    source: Any = registry.build("labels", data_root="/", split="train", **options(request))
    dataset = source.dataset
    train, _ = splitting.of_split(dataset, "train", val_share=request.val_share)
    val, _ = splitting.of_split(dataset, "val", val_share=request.val_share)
    has_own_split = bool({"train"} & set(dataset.splits) and {"val", "test"} & set(dataset.splits))
    return DatasetSummary(
        request=request,
        format=dataset.format,
        classes=tuple(source.class_names[LABELS[request.kind]]),
        train=len(train),
        val=len(val),
        splits="as the dataset has them" if has_own_split else f"{request.val_share:.0%} by content",
        sizes=tuple(record.size for record in train),
        notes=tuple(dataset.reading.notes),
        **_STATISTICS[request.kind](source, train),
    )


def _boxes(source: Any, train: Sequence[Record]) -> dict[str, Any]:
    del source
    shapes = [[shape for shape in record.shapes or () if not shape.crowd] for record in train]
    shares = [
        math.sqrt((shape.xyxy[2] - shape.xyxy[0]) * (shape.xyxy[3] - shape.xyxy[1])) / max(record.size)
        for record, image_shapes in zip(train, shapes, strict=True)
        for shape in image_shapes
    ]
    return {
        "counts": dict(Counter(shape.label for image_shapes in shapes for shape in image_shapes)),
        "box_shares": tuple(sorted(shares)),
        "most_boxes": max(map(len, shapes), default=0),
    }


def _masks(source: Any, train: Sequence[Record]) -> dict[str, Any]:
    names, pixels = source.class_names["segmentation"], Counter[int]()
    for index in _evenly_spaced(len(train)):
        values, counts = np.unique(source[index]["labels"]["segmentation"]["mask"], return_counts=True)
        pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return {"counts": {name: pixels[value] for value, name in enumerate(names)}}


def _classes(source: Any, train: Sequence[Record]) -> dict[str, Any]:
    del source
    return {"counts": dict(Counter(record.class_name for record in train if record.class_name is not None))}


def _tags(source: Any, train: Sequence[Record]) -> dict[str, Any]:
    del source
    true = [
        {shape.label for shape in record.shapes or ()}
        if record.tags is None
        else {name for name, is_true in record.tags.items() if is_true}
        for record in train
    ]
    return {"counts": dict(Counter(name for image_shapes in true for name in image_shapes))}


def _values(source: Any, train: Sequence[Record]) -> dict[str, Any]:
    del source
    return {"counts": {}, **_center_and_scale([record.value for record in train if record.value is not None])}


def _depth(source: Any, train: Sequence[Record]) -> dict[str, Any]:
    metres: list[float] = []
    for index in _evenly_spaced(len(train)):
        depth = source[index]["labels"]["depth"]["depth"]
        metres += (
            np.quantile(depth[np.isfinite(depth)], (0.1, 0.5, 0.9, 1.0)).tolist() if np.isfinite(depth).any() else []
        )
    return {"counts": {}, "farthest": max(metres, default=0.0), **_center_and_scale(metres)}


def _center_and_scale(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {}
    center = median(values)
    return {"center": center, "scale": fmean(abs(value - center) for value in values) or 1.0}


def _evenly_spaced(count: int) -> range:
    return range(0, count, -(-count // SAMPLED_IMAGES) or 1)


def decile_summary(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the 10 %, 50 % and 90 % quantiles of sorted values."""
    if len(values) < 2:
        only = values[0] if values else 0.0
        return only, only, only
    cuts = quantiles(values, n=10, method="inclusive")
    return cuts[0], cuts[4], cuts[8]


_STATISTICS = {
    "boxes": _boxes,
    "masks": _masks,
    "classes": _classes,
    "tags": _tags,
    "values": _values,
    "depth": _depth,
}
