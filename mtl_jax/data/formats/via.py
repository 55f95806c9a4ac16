"""VGG Image Annotator: one JSON file with the regions of all images."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mtl_jax.data.formats.curves import ellipse
from mtl_jax.data.formats.entries import Annotations, Entry, RawShape, split_of
from mtl_jax.data.formats.parsing import coordinate, items, table, text
from mtl_jax.data.formats.place import Place
from mtl_jax.data.formats.records import Dataset, Record, tags_of
from mtl_jax.data.formats.writing import Out, by_split, number, simple
from mtl_jax.errors import UserError

PROJECT = "_via_img_metadata"  # key of a complete project file
CLASS_KEYS = ("label", "class", "name", "type", "category", "object")  # preferred attributes; otherwise the first
ONLY_CLASS = "object"  # class of regions without attributes
NOT_READ = ("point", "polyline", "line")


def is_via(place: Place) -> bool:
    """Returns whether a JSON file lists images with their regions."""
    return any(_images(content) is not None for content in place.first_json())


def read_labels(place: Place, kind: str | None) -> Annotations:
    """Reads all files; an attribute of the file that is called "class" or "tags" is a tag.

    Raises:
        UserError: a file is broken; names it, the image and the region.
    """
    del kind
    counts: Counter[str] = Counter()
    entries: list[Entry] = []
    for file in place.by_suffix(".json"):
        split = split_of(file.stem) or place.split_of(file)
        for name, content in (_images(place.json(file)) or {}).items():
            entries.append(_entry(content, file, split, f"{file}: {name!r}", counts))
    if not any(entry.shapes for entry in entries) and any(entry.tags for entry in entries):
        for entry in entries:  # attributes only
            entry.shapes = None
    return Annotations(entries, counts=counts)


def _images(content: Any) -> dict[str, Any] | None:
    images = content.get(PROJECT, content) if isinstance(content, dict) else None
    if not isinstance(images, dict) or not images:
        return None
    first = next(iter(images.values()))
    return images if isinstance(first, dict) and "filename" in first and "regions" in first else None


def _entry(content: Any, file: Path, split: str, location: str, counts: Counter[str]) -> Entry:
    record = table(content, location)
    regions = record.get("regions") or []
    if isinstance(regions, dict):  # version 1: regions by number
        regions = list(regions.values())
    shapes = []
    for index, region in enumerate(items(regions, f"{location}: regions")):
        place = f"{location}, region {index}"
        shape = table(table(region, place).get("shape_attributes"), place)
        label = _class(table(region.get("region_attributes") or {}, place), place)
        if label is None:
            counts["regions without class, called object"] += 1
        raw_shape = _raw_shape(shape, label or ONLY_CLASS, place, counts)
        shapes += [] if raw_shape is None else [raw_shape]
    attributes = table(record.get("file_attributes") or {}, location)
    tags = {tag: True for key in ("class", "tags") for tag in _selected_values(attributes.get(key))}
    if isinstance(attributes.get("split"), str):
        split = split_of(attributes["split"]) or split
    name = text(record.get("filename"), f"{location}: filename")
    return Entry(name, location, file.parent, split=split, shapes=shapes, tags=tags or None)


def _class(attributes: Mapping[str, Any], location: str) -> str | None:
    keys = [key for key in (*CLASS_KEYS, *attributes) if key in attributes]
    values = _selected_values(attributes[keys[0]]) if keys else []
    if len(values) > 1:
        raise UserError(f"{location}: expected one class, found {', '.join(values)}; correct the file")
    return values[0] if values else None


def _selected_values(value: Any) -> list[str]:
    """Returns a text value, or the selected options of a table."""
    if isinstance(value, dict):
        return [str(name) for name, is_true in value.items() if is_true]
    return [str(value).strip()] if isinstance(value, str | int) and str(value).strip() else []


def _raw_shape(shape: Mapping[str, Any], label: str, location: str, counts: Counter[str]) -> RawShape | None:
    def numbers(*names: str) -> Iterator[float]:
        return (coordinate(shape.get(name), f"{location}: {name}") for name in names)

    form = shape.get("name")
    if form == "rect":
        x, y, width, height = numbers("x", "y", "width", "height")
        return RawShape(label, (x, y, x + width, y + height))
    if form == "polygon":
        xs, ys = (items(shape.get(name), f"{location}: {name}") for name in ("all_points_x", "all_points_y"))
        if len(xs) != len(ys):
            raise UserError(f"{location}: expected as many x as y, found {len(xs)} and {len(ys)}; correct the file")
        points = tuple((coordinate(x, location), coordinate(y, location)) for x, y in zip(xs, ys, strict=True))
        return RawShape(label, polygons=(points,))
    if form == "circle":
        x, y, radius = numbers("cx", "cy", "r")
        return RawShape(label, polygons=(ellipse(x, y, radius, radius),))
    if form == "ellipse":
        x, y, radius_x, radius_y = numbers("cx", "cy", "rx", "ry")
        turn = math.degrees(coordinate(shape.get("theta") or 0, location))
        return RawShape(label, polygons=(ellipse(x, y, radius_x, radius_y, turn),))
    counts[f"regions not read: {form if form in NOT_READ else 'others'}"] += 1
    return None


def write(dataset: Dataset, out: Out) -> None:
    """Writes {split}.json and images/{split}; crowds are left out."""
    for split, records in by_split(dataset):
        content = {}
        for record in records:
            image = out.put_image(record, f"images/{split}")
            size = image.stat().st_size
            name = image.relative_to(out.folder).as_posix()
            attributes = {"split": split} if split else {}
            true_tags = [tag for tag, is_true in (tags_of(record) or {}).items() if is_true] if record.tags else []
            content[f"{name}{size}"] = {
                "filename": name,
                "size": size,
                "regions": list(_regions(record, out.counts)),
                "file_attributes": attributes | ({"tags": dict.fromkeys(true_tags, True)} if true_tags else {}),
            }
        file = out.file(f"{split or 'regions'}.json")
        file.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def _regions(record: Record, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    for shape in simple(record.shapes, counts):
        if shape.polygons:
            xs, ys = zip(*shape.polygons[0], strict=True)
            shape_attributes = {
                "name": "polygon",
                "all_points_x": [*map(number, xs)],
                "all_points_y": [*map(number, ys)],
            }
        else:
            left, top, right, bottom = shape.xyxy
            sides = {"x": left, "y": top, "width": right - left, "height": bottom - top}
            shape_attributes = {"name": "rect"} | {name: number(round(value, 2)) for name, value in sides.items()}
        yield {"shape_attributes": shape_attributes, "region_attributes": {"label": shape.label}}
