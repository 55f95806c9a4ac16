"""COCO: one JSON file for each split, with boxes, polygons and run lengths."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.data.formats import painting
from mtl_jax.data.formats.entries import Annotations, Entry, RawShape, split_of
from mtl_jax.data.formats.parsing import coordinate, coordinates, items
from mtl_jax.data.formats.place import Place
from mtl_jax.data.formats.records import Dataset, Polygon, Runs, Shape
from mtl_jax.data.formats.writing import NO_SPLIT, Out, by_split, number, object_names
from mtl_jax.data.sources import coco_file
from mtl_jax.errors import UserError

SECTIONS = ("images", "annotations", "categories")
MAIN = "instances"  # prefix of COCO's object files, unlike those of captions and keypoints


def is_coco(place: Place) -> bool:
    """Returns whether a JSON file has COCO's three lists."""
    return any(_fits(content) for content in place.first_json())


def read_labels(place: Place, kind: str | None) -> Annotations:
    """Reads all files; categories of the same name are one class.

    Raises:
        UserError: a file is broken; names the annotation.
    """
    files = [file for file in place.by_suffix(".json") if _fits(place.json(file))]
    files = [file for file in files if file.stem.startswith(MAIN)] or files
    entries: list[Entry] = []
    names: dict[str, None] = {}
    for file in sorted(files, key=lambda file: (_split(file) != "train", str(file))):
        content = coco_file.check(place.json(file), file)
        names |= dict.fromkeys(coco_file.names_of(content).values())
        entries += _entries(content, file, outlines=kind != "boxes")
    return Annotations(entries, names=tuple(names))


def _fits(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(content.get(section), list) for section in SECTIONS)


def _split(file: Path) -> str:
    return split_of(*re.split(r"[^A-Za-z0-9]+", file.stem), file.parent.name)


def _entries(content: Mapping[str, Any], file: Path, *, outlines: bool) -> Iterator[Entry]:
    images, names = coco_file.images_of(content, file), coco_file.names_of(content)
    raw_shapes: list[list[RawShape]] = [[] for _ in images.entries]
    sizes = [(entry["width"], entry["height"]) for entry in images.entries]
    for annotation in content["annotations"]:
        location = f"{file}: annotation {annotation.get('id')!r}"
        category, image = annotation["category_id"], annotation["image_id"]
        if category not in names:
            raise UserError(f"{location}: expected a category of the file, found id {category!r}; correct the file")
        if image not in images.number:
            raise UserError(f"{location}: expected an image of the file, found id {image!r}; correct the file")
        number = images.number[image]
        raw_shapes[number].append(_raw_shape(annotation, names[category], sizes[number], location, outlines))
    folder = file.parent.parent / file.stem.removeprefix(f"{MAIN}_")
    near = folder if folder.is_dir() else file.parent
    for entry, size, shapes in zip(images.entries, sizes, raw_shapes, strict=True):
        location = f"{file}: image {entry['id']!r}"
        yield Entry(entry["file_name"], location, near, size, split=_split(file), shapes=shapes)


def _raw_shape(
    annotation: Mapping[str, Any], label: str, size: tuple[int, int], location: str, outlines: bool
) -> RawShape:
    bbox = annotation.get("bbox")
    xyxy = None
    if bbox is not None:
        if not isinstance(bbox, list) or len(bbox) != 4:
            raise UserError(f"{location}: expected bbox [x, y, width, height], found {bbox}; correct the file")
        x, y, width, height = (coordinate(value, location) for value in bbox)
        xyxy = (x, y, x + width, y + height)
    crowd = annotation.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise UserError(f"{location}: expected iscrowd 0 or 1, found {crowd!r}; correct the file")
    polygons, runs = (
        _outlines(annotation.get("segmentation"), size, location) if outlines or bbox is None else ((), None)
    )
    area = coordinate(annotation.get("area") or 0, location)
    return RawShape(label, xyxy, polygons, runs, bool(crowd), area if area > 0 else None)


def _outlines(segmentation: Any, size: tuple[int, int], location: str) -> tuple[tuple[Polygon, ...], Runs | None]:
    if not segmentation:
        return (), None
    if isinstance(segmentation, dict):
        return (), _runs(segmentation, size, location)
    polygons = (
        segmentation if isinstance(items(segmentation, location)[0], list) else [segmentation]
    )  # some exporters omit the outer list of a single polygon
    return tuple(points_of(items(polygon, location), location) for polygon in polygons), None


def points_of(numbers: Sequence[Any], location: str) -> Polygon:
    """Returns the corners of a flat list x, y, x, y, ….

    Raises:
        UserError: the values are not numbers, or their count is odd.
    """
    if len(numbers) % 2:
        raise UserError(
            f"{location}: expected a polygon as x, y, x, y, …, found {len(numbers)} numbers; correct the file"
        )
    values = coordinates(numbers, location)
    return tuple(zip(values[::2], values[1::2], strict=True))


def _runs(encoding: Mapping[str, Any], size: tuple[int, int], location: str) -> Runs:
    counts = encoding.get("counts")
    if encoding.get("size") not in (None, [size[1], size[0]]):
        raise UserError(f"{location}: expected run lengths of {size[1]} x {size[0]}, found size {encoding['size']}")
    try:
        lengths = painting.parse_counts(counts) if isinstance(counts, str) else items(counts, location)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{location}: expected run lengths, found {error}; correct the file") from error
    if not all(type(length) is int for length in lengths):
        raise UserError(f"{location}: expected run lengths as whole numbers, found others; correct the file")
    return painting.check_runs(lengths, size, location)


def write(dataset: Dataset, out: Out) -> None:
    """Writes annotations/instances_{split}.json next to the folder of each split's images."""
    names = object_names(dataset)
    categories = [{"id": index, "name": name} for index, name in enumerate(names, 1)]
    for split, records in by_split(dataset):
        folder = split or NO_SPLIT
        images, annotations = [], []
        for image_id, record in enumerate(records, 1):
            file = out.put_image(record, folder)
            width, height = record.size
            images.append({"id": image_id, "file_name": file.name, "width": width, "height": height})
            for shape in record.shapes or ():
                annotation = {"id": len(annotations) + 1, "image_id": image_id} | _annotation(shape, names)
                annotations.append(annotation)
        content = {"images": images, "annotations": annotations, "categories": categories}
        out.file(f"annotations/{MAIN}_{folder}.json").write_text(json.dumps(content), encoding="utf-8")


def _annotation(shape: Shape, names: Sequence[str]) -> dict[str, Any]:
    left, top, right, bottom = shape.xyxy
    entry: dict[str, Any] = {
        "category_id": names.index(shape.label) + 1,
        "bbox": [number(round(value, 2)) for value in (left, top, right - left, bottom - top)],
        "area": number(round(shape.area or (right - left) * (bottom - top), 2)),
        "iscrowd": int(shape.crowd),
    }
    if shape.runs is not None:
        width, height = shape.runs.size
        entry["segmentation"] = {"counts": list(shape.runs.counts), "size": [height, width]}
    elif shape.polygons:
        entry["segmentation"] = [[number(value) for point in polygon for value in point] for polygon in shape.polygons]
    return entry
