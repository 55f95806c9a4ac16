"""Label Studio: one JSON file with the results of all tasks, in percent of the image."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mtl_jax.data.formats import painting
from mtl_jax.data.formats.brush import alpha_of
from mtl_jax.data.formats.curves import ellipse, rotate
from mtl_jax.data.formats.entries import Annotations, Entry, RawShape, split_of
from mtl_jax.data.formats.parsing import coordinate, integer, items, table, text
from mtl_jax.data.formats.place import Place
from mtl_jax.data.formats.records import Dataset, Record, tags_of
from mtl_jax.data.formats.writing import Out, by_split, simple
from mtl_jax.errors import UserError

PERCENT = 100.0
IMAGE_KEYS = ("image", "img", "photo", "picture", "url")  # preferred keys; otherwise the first text of a task's data
UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # prefix of uploaded files


def is_label_studio(place: Place) -> bool:
    """Returns whether a JSON file lists tasks with data and annotations."""
    return any(_fits(content) for content in place.first_json())


def read_labels(place: Place, kind: str | None) -> Annotations:
    """Reads the first annotation of each task that was not cancelled; choices are tags.

    Raises:
        UserError: a file is broken; names it, the task and the result.
    """
    del kind
    counts: Counter[str] = Counter()
    entries: list[Entry] = []
    for file in place.by_suffix(".json"):
        content = place.json(file)
        if _fits(content):
            for index, task in enumerate(content):
                location = f"{file}: task {task.get('id', index) if isinstance(task, dict) else index}"
                entries += _entries(table(task, location), file, location, counts)
    if not any(entry.shapes for entry in entries) and any(entry.tags or entry.value is not None for entry in entries):
        for entry in entries:  # choices or numbers only
            entry.shapes = None
    return Annotations(entries, counts=counts)


def _fits(content: Any) -> bool:
    first = content[0] if isinstance(content, list) and content else None
    return isinstance(first, dict) and isinstance(first.get("data"), dict) and "annotations" in first


def _entries(task: Mapping[str, Any], file: Path, location: str, counts: Counter[str]) -> Iterator[Entry]:
    data = table(task.get("data"), f"{location}: data")
    texts = [data[key] for key in (*IMAGE_KEYS, *data) if isinstance(data.get(key), str)]
    if not texts:
        raise UserError(f"{location}: expected the address of an image in data, found none; correct the file")
    annotations = [
        table(annotation, location) for annotation in items(task.get("annotations"), f"{location}: annotations")
    ]
    completed = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
    if not completed:
        counts["tasks without annotation"] += 1
        return
    counts["annotations by others left out"] += len(completed) - 1
    entry = Entry(texts[0], location, file.parent, split=split_of(file.stem, file.parent.name), shapes=[], shares=True)
    file_name = texts[0].replace("\\", "/").rpartition("/")[2]
    entry.other_name = UPLOADED.sub("", file_name)
    if isinstance(data.get("split"), str):
        entry.split = split_of(data["split"]) or entry.split
    for index, result in enumerate(items(completed[0].get("result"), f"{location}: result")):
        _add(entry, table(result, location), f"{location}, result {index}", counts)
    yield entry


def _add(entry: Entry, result: Mapping[str, Any], location: str, counts: Counter[str]) -> None:
    value, form = table(result.get("value", {}), location), str(result.get("type"))
    if result.get("original_width") and result.get("original_height"):
        size = (
            integer(result["original_width"], location, least=1),
            integer(result["original_height"], location, least=1),
        )
        entry.size = entry.size or size
    if form == "choices":
        entry.tags = dict(entry.tags or {}) | {
            text(choice, location): True for choice in items(value.get("choices"), f"{location}: choices")
        }
    elif form in ("number", "rating"):
        entry.value = coordinate(value.get(form), location)
    elif form.removesuffix("labels") in _SHAPES:
        labels = items(value.get(form) or [], f"{location}: {form}")
        if not labels:
            counts["objects without class, left out"] += 1
            return
        label = text(labels[0], location)
        assert entry.shapes is not None
        entry.shapes.append(_SHAPES[form.removesuffix("labels")](value, label, entry.size, location))
    else:
        counts["results not read"] += 1


def _numbers(value: Mapping[str, Any], location: str, *names: str) -> list[float]:
    return [coordinate(value.get(name), f"{location}: {name}") / PERCENT for name in names]


def _rectangle(value: Mapping[str, Any], label: str, size: tuple[int, int] | None, location: str) -> RawShape:
    x, y, width, height = _numbers(value, location, "x", "y", "width", "height")
    angle = coordinate(value.get("rotation") or 0, location)
    if angle and size is not None:  # around the corner, in pixels
        corners = ((x, y), (x + width, y), (x + width, y + height), (x, y + height))
        pixels = tuple((a * size[0], b * size[1]) for a, b in corners)
        return RawShape(
            label, polygons=(tuple((a / size[0], b / size[1]) for a, b in rotate(pixels, angle, pixels[0])),)
        )
    return RawShape(label, (x, y, x + width, y + height))


def _polygon(value: Mapping[str, Any], label: str, size: tuple[int, int] | None, location: str) -> RawShape:
    del size
    points = []
    for point in items(value.get("points"), f"{location}: points"):
        if not isinstance(point, list) or len(point) != 2:
            raise UserError(f"{location}: expected points [x, y], found {str(point)[:40]}; correct the file")
        points.append((coordinate(point[0], location) / PERCENT, coordinate(point[1], location) / PERCENT))
    return RawShape(label, polygons=(tuple(points),))


def _ellipse(value: Mapping[str, Any], label: str, size: tuple[int, int] | None, location: str) -> RawShape:
    del size
    x, y, radius_x, radius_y = _numbers(value, location, "x", "y", "radiusX", "radiusY")
    return RawShape(label, polygons=(ellipse(x, y, radius_x, radius_y),))


def _brush(value: Mapping[str, Any], label: str, size: tuple[int, int] | None, location: str) -> RawShape:
    if size is None:
        raise UserError(f"{location}: expected original_width and original_height, found none; export again")
    packed = [integer(byte, f"{location}: rle", most=256) for byte in items(value.get("rle"), f"{location}: rle")]
    return RawShape(label, runs=painting.runs_of(alpha_of(bytes(packed), size, location) > 0))


_SHAPES = {"rectangle": _rectangle, "polygon": _polygon, "ellipse": _ellipse, "brush": _brush}


def write(dataset: Dataset, out: Out) -> None:
    """Writes {split}.json and images/{split}; crowds are left out."""
    for split, records in by_split(dataset):
        tasks = []
        for record in records:
            image = out.put_image(record, f"images/{split}")
            data = {"image": image.relative_to(out.folder).as_posix()} | ({"split": split} if split else {})
            results = [result | _common(record) for result in _results(record, out.counts)]
            tasks.append(
                {"id": len(tasks) + 1, "data": data, "annotations": [{"id": len(tasks) + 1, "result": results}]}
            )
        file = out.file(f"{split or 'tasks'}.json")
        file.write_text(json.dumps(tasks, ensure_ascii=False, indent=1), encoding="utf-8")


def _common(record: Record) -> dict[str, Any]:
    return {
        "original_width": record.size[0],
        "original_height": record.size[1],
        "image_rotation": 0,
        "to_name": "image",
    }


def _results(record: Record, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    width, height = record.size
    for shape in simple(record.shapes, counts):
        if shape.polygons:
            points = [[PERCENT * x / width, PERCENT * y / height] for x, y in shape.polygons[0]]
            form, value = "polygonlabels", {"points": points}
        else:
            left, top, right, bottom = shape.xyxy
            value = {"x": PERCENT * left / width, "y": PERCENT * top / height, "rotation": 0}
            value |= {"width": PERCENT * (right - left) / width, "height": PERCENT * (bottom - top) / height}
            form = "rectanglelabels"
        yield {"type": form, "from_name": "label", "value": value | {form: [shape.label]}}
    true_tags = [tag for tag, is_true in (tags_of(record) or {}).items() if is_true] if record.tags is not None else []
    if true_tags:
        yield {"type": "choices", "from_name": "choice", "value": {"choices": true_tags}}
    if record.value is not None:
        yield {"type": "number", "from_name": "number", "value": {"number": record.value}}
