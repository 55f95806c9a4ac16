"""LabelMe: one JSON file for each image with shapes and flags."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.data.formats import painting
from mtl_jax.data.formats.curves import ellipse
from mtl_jax.data.formats.entries import Annotations, Entry, RawShape
from mtl_jax.data.formats.parsing import coordinate, integer, items, table, text
from mtl_jax.data.formats.place import Place
from mtl_jax.data.formats.records import Dataset, Polygon, Record, tags_of
from mtl_jax.data.formats.writing import Out, by_split, number
from mtl_jax.data.pixel_labels import mask_values
from mtl_jax.errors import UserError


def is_labelme(place: Place) -> bool:
    """Returns whether a JSON file has the shapes of an image."""
    return any(_fits(content) for content in place.first_json())


def read_labels(place: Place, kind: str | None) -> Annotations:
    """Reads all files; shapes of one class and group are one object. Flags are tags.

    Raises:
        UserError: a file is broken; names it and the shape.
    """
    del kind
    counts: Counter[str] = Counter()
    files = [file for file in place.by_suffix(".json") if _fits(place.json(file))]
    entries = [_entry(table(place.json(file), str(file)), file, place.split_of(file), counts) for file in files]
    if not any(entry.shapes for entry in entries) and any(entry.tags for entry in entries):
        for entry in entries:  # flags only
            entry.shapes = None
    return Annotations(entries, counts=counts)


def _fits(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def _entry(content: dict[str, Any], file: Path, split: str, counts: Counter[str]) -> Entry:
    location = str(file)
    size = None
    if content.get("imageWidth") and content.get("imageHeight"):
        width, height = (integer(content[key], f"{location}: {key}", least=1) for key in ("imageWidth", "imageHeight"))
        size = (width, height)
    groups: dict[Any, RawShape] = {}
    for index, item in enumerate(items(content["shapes"], location)):
        place = f"{location}: shape {index}"
        raw_shape = _raw_shape(table(item, place), size, place, counts)
        if raw_shape is None:
            continue
        group = item.get("group_id")
        key = (raw_shape.label, str(group)) if group is not None and raw_shape.polygons else index
        if key in groups:
            groups[key].polygons += raw_shape.polygons
        else:
            groups[key] = raw_shape
    flags = table(content.get("flags") or {}, f"{location}: flags")
    tags = {text(name, f"{location}: flags"): bool(is_true) for name, is_true in flags.items()}
    name = text(content["imagePath"], f"{location}: imagePath")
    return Entry(
        name, location, file.parent, size, split, list(groups.values()), tags=tags or None, other_name=file.stem
    )


def _raw_shape(
    item: dict[str, Any], size: tuple[int, int] | None, location: str, counts: Counter[str]
) -> RawShape | None:
    label = text(item.get("label"), f"{location}: label")
    points = _points(item.get("points"), location)
    form = item.get("shape_type") or "polygon"
    if form == "polygon":
        return RawShape(label, polygons=(points,))
    if form == "rectangle" and len(points) >= 2:  # two opposite corners, or all four
        xs, ys = zip(*points, strict=True)
        return RawShape(label, (min(xs), min(ys), max(xs), max(ys)))
    if form == "circle" and len(points) == 2:
        (x, y), edge = points
        return RawShape(label, polygons=(ellipse(x, y, *[math.dist((x, y), edge)] * 2),))
    if form == "mask" and size is not None and points:
        return RawShape(label, runs=_runs(item.get("mask"), points[0], size, location))
    counts[f"shapes not read: {form if form in ('line', 'linestrip', 'point', 'points') else 'others'}"] += 1
    return None


def _points(point_list: Any, location: str) -> Polygon:
    points = []
    for point in items(point_list, f"{location}: points"):
        if not isinstance(point, list) or len(point) != 2:
            raise UserError(f"{location}: expected points [x, y], found {str(point)[:40]}; correct the file")
        points.append((coordinate(point[0], location), coordinate(point[1], location)))
    return tuple(points)


def _runs(packed: Any, corner: tuple[float, float], size: tuple[int, int], location: str) -> painting.Runs:
    """Decodes a mask, an image whose first pixel is at `corner`."""
    try:
        content = base64.b64decode(packed, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise UserError(f"{location}: expected a mask in base64, found {error}; correct the file") from error
    mask = mask_values(content, name=location) > 0
    left, top = (integer(round(side) if math.isfinite(side) else side, location) for side in corner)
    pixels = np.zeros((size[1], size[0]), bool)
    window = pixels[top : top + mask.shape[0], left : left + mask.shape[1]]
    window[:] = mask[: window.shape[0], : window.shape[1]]
    return painting.runs_of(pixels)


def write(dataset: Dataset, out: Out) -> None:
    """Writes a JSON file next to each image, in a folder for each split; crowds are left out."""
    for split, records in by_split(dataset):
        for record in records:
            image = out.put_image(record, split or ".")
            content = {
                "version": "5.0.0",
                "flags": {} if record.tags is None else dict(tags_of(record) or {}),
                "shapes": _shapes(record, out.counts),
                "imagePath": image.name,
                "imageData": None,
                "imageHeight": record.size[1],
                "imageWidth": record.size[0],
            }
            file = out.file(f"{split or '.'}/{image.stem}.json")
            file.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def _shapes(record: Record, counts: Counter[str]) -> list[dict[str, Any]]:
    shapes: list[dict[str, Any]] = []
    for group, shape in enumerate(record.shapes or ()):
        left, top, right, bottom = shape.xyxy
        outlines = [("polygon", polygon) for polygon in shape.polygons] or [
            ("rectangle", ((left, top), (right, bottom)))
        ]
        counts["crowds left out"] += shape.crowd
        shapes += [
            {
                "label": shape.label,
                "points": [[number(x), number(y)] for x, y in points],
                "group_id": group if len(outlines) > 1 else None,
                "shape_type": form,
                "flags": {},
            }
            for form, points in ([] if shape.crowd else outlines)
        ]
    return shapes
