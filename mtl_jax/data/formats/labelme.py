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
from mtl_jax.data.formats.entries import Drawn, Entry, Found
from mtl_jax.data.formats.parsing import coordinate, items, table, text, whole
from mtl_jax.data.formats.place import Place
from mtl_jax.data.formats.records import Dataset, Polygon, Record, tags_of
from mtl_jax.data.formats.writing import Out, by_split, number
from mtl_jax.data.images import mask_values
from mtl_jax.errors import UserError


def is_labelme(place: Place) -> bool:
    """Whether a JSON file has the shapes of one image."""
    return any(_fits(content) for content in place.first_json())


def read(place: Place, kind: str | None) -> Found:
    """Reads all files; shapes of one class and group are one object. Flags are tags.

    Raises:
        UserError: a file is broken; names it and the shape.
    """
    del kind
    counts: Counter[str] = Counter()
    files = [file for file in place.by_suffix(".json") if _fits(place.json(file))]
    entries = [_entry(table(place.json(file), str(file)), file, place.split_of(file), counts) for file in files]
    if not any(entry.shapes for entry in entries) and any(entry.tags for entry in entries):
        for entry in entries:  # flags alone
            entry.shapes = None
    return Found(entries, counts=counts)


def _fits(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def _entry(content: dict[str, Any], file: Path, split: str, counts: Counter[str]) -> Entry:
    where = str(file)
    size = None
    if content.get("imageWidth") and content.get("imageHeight"):
        width, height = (whole(content[key], f"{where}: {key}", least=1) for key in ("imageWidth", "imageHeight"))
        size = (width, height)
    groups: dict[Any, Drawn] = {}
    for index, found in enumerate(items(content["shapes"], where)):
        place = f"{where}: shape {index}"
        drawn = _drawn(table(found, place), size, place, counts)
        if drawn is None:
            continue
        group = found.get("group_id")
        key = (drawn.label, str(group)) if group is not None and drawn.polygons else index
        if key in groups:
            groups[key].polygons += drawn.polygons
        else:
            groups[key] = drawn
    flags = table(content.get("flags") or {}, f"{where}: flags")
    tags = {text(name, f"{where}: flags"): bool(is_true) for name, is_true in flags.items()}
    name = text(content["imagePath"], f"{where}: imagePath")
    return Entry(name, where, file.parent, size, split, list(groups.values()), tags=tags or None, other_name=file.stem)


def _drawn(found: dict[str, Any], size: tuple[int, int] | None, where: str, counts: Counter[str]) -> Drawn | None:
    label = text(found.get("label"), f"{where}: label")
    points = _points(found.get("points"), where)
    form = found.get("shape_type") or "polygon"
    if form == "polygon":
        return Drawn(label, polygons=(points,))
    if form == "rectangle" and len(points) >= 2:  # two opposite corners, or all four
        xs, ys = zip(*points, strict=True)
        return Drawn(label, (min(xs), min(ys), max(xs), max(ys)))
    if form == "circle" and len(points) == 2:
        (x, y), edge = points
        return Drawn(label, polygons=(ellipse(x, y, *[math.dist((x, y), edge)] * 2),))
    if form == "mask" and size is not None and points:
        return Drawn(label, runs=_runs(found.get("mask"), points[0], size, where))
    counts[f"shapes not read: {form if form in ('line', 'linestrip', 'point', 'points') else 'others'}"] += 1
    return None


def _points(found: Any, where: str) -> Polygon:
    points = []
    for point in items(found, f"{where}: points"):
        if not isinstance(point, list) or len(point) != 2:
            raise UserError(f"{where}: expected points [x, y], found {str(point)[:40]}; correct the file")
        points.append((coordinate(point[0], where), coordinate(point[1], where)))
    return tuple(points)


def _runs(packed: Any, corner: tuple[float, float], size: tuple[int, int], where: str) -> painting.Runs:
    """A mask is an image, whose first pixel is at a corner."""
    try:
        content = base64.b64decode(packed, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise UserError(f"{where}: expected a mask in base64, found {error}; correct the file") from error
    inside = mask_values(content, name=where) > 0
    left, top = (whole(round(side) if math.isfinite(side) else side, where) for side in corner)
    pixels = np.zeros((size[1], size[0]), bool)
    part = pixels[top : top + inside.shape[0], left : left + inside.shape[1]]
    part[:] = inside[: part.shape[0], : part.shape[1]]
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
        parts = [("polygon", polygon) for polygon in shape.polygons] or [("rectangle", ((left, top), (right, bottom)))]
        counts["crowds left out"] += shape.crowd
        shapes += [
            {
                "label": shape.label,
                "points": [[number(x), number(y)] for x, y in points],
                "group_id": group if len(parts) > 1 else None,
                "shape_type": form,
                "flags": {},
            }
            for form, points in ([] if shape.crowd else parts)
        ]
    return shapes
