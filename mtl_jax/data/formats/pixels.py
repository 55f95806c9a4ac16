"""Conversion between masks and objects."""

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
    """Returns the mask of an image; None if it has neither a mask nor objects.

    Args:
        record: record of the image.
        values: class name -> value for objects, others are skipped; a mask keeps the values of the dataset.
        image: the image, whose size the mask must have.

    Raises:
        UserError: the mask is unreadable or of another size.
    """
    if record.mask is not None:
        return record.mask.read_pixels(image, stored=record.stored)
    if record.shapes is None:
        return None
    return painting.paint(record.shapes, record.size, values)


def with_objects(dataset: Dataset, *, outlines: str, counts: Counter[str]) -> Dataset:
    """Converts masks to objects, one for each class of an image.

    Args:
        dataset: dataset with masks or objects.
        outlines: outlines of the objects: "runs" or "polygons".
        counts: receives the counts of lost labels.
    """
    records = tuple(
        _with_objects(record, dataset.classes.get("segmentation", ()), counts) for record in dataset.records
    )
    if outlines == "polygons":
        records = tuple(_trace_polygons(record) for record in records)
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
        bounds = painting.bounds(pixels) if name != BACKGROUND else None
        if bounds is not None:
            shapes.append(Shape(name, bounds, runs=painting.runs_of(pixels), area=float(pixels.sum())))
    return dataclasses.replace(record, shapes=tuple(shapes), mask=None)


def _trace_polygons(record: Record) -> Record:
    """Converts pixels of objects to polygons; each connected component becomes an object."""
    shapes: list[Shape] = []
    for shape in record.shapes or ():
        if shape.runs is None or shape.crowd:  # polygon formats drop crowds, and count each as one
            shapes.append(shape)
            continue
        for polygon in tracing.polygons_of(painting.pixels_of(shape.runs)):
            xs, ys = zip(*polygon, strict=True)
            xyxy = (min(xs), min(ys), max(xs), max(ys))
            shapes.append(Shape(shape.label, xyxy, (polygon,)))
    return dataclasses.replace(record, shapes=None if record.shapes is None else tuple(shapes))


def without_outlines(dataset: Dataset) -> Dataset:
    """Removes the outlines of objects, so that boxes remain."""
    records = tuple(
        record
        if record.shapes is None
        else dataclasses.replace(
            record, shapes=tuple(shape._replace(polygons=(), runs=None) for shape in record.shapes)
        )
        for record in dataset.records
    )
    return dataclasses.replace(dataset, records=records)
