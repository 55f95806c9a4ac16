"""Conversion between forms of a label: masks to objects, and objects to masks."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Integer

from mtl_jax.data.formats import painting, tracing
from mtl_jax.data.formats.records import BACKGROUND, Dataset, Record, Shape
from mtl_jax.data.images import Decoded, read_image
from mtl_jax.data.sources.base import missing


def mask_of(record: Record, values: Mapping[str, int], image: Decoded) -> Integer[np.ndarray, "height width"] | None:
    """Returns the class of every pixel; None where an image has neither a mask nor objects.

    Args:
        record: of the image.
        values: name -> value; of objects, others are left out, and a mask keeps the dataset's own values.
        image: that the mask must fit.

    Raises:
        UserError: the mask is unreadable or of another size.
    """
    if record.mask is not None:
        return record.mask.read_pixels(image, stored=record.stored)
    if record.shapes is None:
        return None
    return painting.paint(record.shapes, record.size, values)


def with_objects(dataset: Dataset, *, outlines: str, counts: Counter[str]) -> Dataset:
    """Returns a dataset whose masks have become one object for each class of an image.

    Args:
        dataset: with masks or objects.
        outlines: what objects may have: "runs" or "polygons".
        counts: of what is lost.
    """
    records = tuple(
        _with_objects(record, dataset.classes.get("segmentation", ()), counts) for record in dataset.records
    )
    if outlines == "polygons":
        records = tuple(_traced(record) for record in records)
    names = tuple(name for name in dataset.classes.get("segmentation", ()) if name != BACKGROUND)
    classes = {"detection": names, **dataset.classes}
    return dataclasses.replace(dataset, records=records, classes=classes)


def _with_objects(record: Record, names: Sequence[str], counts: Counter[str]) -> Record:
    if record.mask is None:
        return record
    mask = record.mask.read_pixels(read_image(record.image), stored=record.stored)
    counts["images with unlabelled pixels, now background"] += bool((mask == missing(mask)).any())
    shapes = []
    for value, name in enumerate(names):
        pixels = mask == value
        around = painting.bounds(pixels) if name != BACKGROUND else None
        if around is not None:
            shapes.append(Shape(name, around, runs=painting.runs_of(pixels), area=float(pixels.sum())))
    return dataclasses.replace(record, shapes=tuple(shapes), mask=None)


def _traced(record: Record) -> Record:
    """An object's pixels become one object for each of their parts."""
    shapes: list[Shape] = []
    for shape in record.shapes or ():
        if shape.runs is None or shape.crowd:  # formats of polygons leave crowds out, and count each as one
            shapes.append(shape)
            continue
        for polygon in tracing.polygons_of(painting.pixels_of(shape.runs)):
            xs, ys = zip(*polygon, strict=True)
            xyxy = (min(xs), min(ys), max(xs), max(ys))
            shapes.append(Shape(shape.label, xyxy, (polygon,)))
    return dataclasses.replace(record, shapes=None if record.shapes is None else tuple(shapes))


def without_outlines(dataset: Dataset) -> Dataset:
    """Returns a dataset whose objects are boxes alone."""
    records = tuple(
        record
        if record.shapes is None
        else dataclasses.replace(
            record, shapes=tuple(shape._replace(polygons=(), runs=None) for shape in record.shapes)
        )
        for record in dataset.records
    )
    return dataclasses.replace(dataset, records=records)
