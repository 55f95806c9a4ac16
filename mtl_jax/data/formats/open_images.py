"""Open Images: tables of boxes in relative coordinates, and of verified image-level labels."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mtl_jax.data.formats.entries import Annotations, Entry, RawShape, split_of
from mtl_jax.data.formats.parsing import rows_of
from mtl_jax.data.formats.place import Place
from mtl_jax.data.formats.records import Dataset, Shape, tags_of
from mtl_jax.data.formats.writing import NO_SPLIT, Out, by_split, object_names, short
from mtl_jax.data.sources import open_images_csv as tables
from mtl_jax.errors import UserError

IMAGE, LABEL, CONFIDENCE = "ImageID", "LabelName", "Confidence"
BOX_COLUMNS = (IMAGE, LABEL, *tables.CORNERS)
ID_PREFIX = "/"  # of a machine id, such as /m/01g317
FILE_SPLITS = {"": NO_SPLIT, "train": "train", "val": "validation", "test": "test"}


def is_open_images(place: Place) -> bool:
    """Returns whether a table has the box columns of Open Images."""
    return any(set(BOX_COLUMNS) <= set(header) for _, header in place.first_tables())


def read_labels(place: Place, kind: str | None) -> Annotations:
    """Reads all tables; images are those that a table names. Groups are crowds.

    Raises:
        UserError: a table is broken; names the line.
    """
    del kind
    boxes, presences, names = _tables(place)
    ids = _ids([*boxes, *presences])
    labels = {mid: number for number, mid in enumerate(names or ids)}
    unknown = [mid for mid in ids if mid not in labels]
    if unknown:
        raise UserError(f"{place.path}: expected the name of class {unknown[0]} in a table, found none; add the table")
    table = list(names.values()) if names else list(ids)
    entries: dict[tuple[Path, str], Entry] = {}
    for file in boxes:
        for image, box in tables.read_boxes(file, labels, _always, optional={"IsGroupOf": "0"}):
            entry = entries.setdefault((file, image), _entry(image, file))
            assert entry.shapes is not None
            left, top, right, bottom = box.corners
            entry.shapes.append(RawShape(table[box.label], (left, top, right, bottom), crowd=box.crowd))
    for file in presences:
        for image, label, is_there in tables.read_presences(file, labels, _always):
            key = next(
                ((table_file, image) for table_file in boxes if _split(table_file) == _split(file)), (file, image)
            )
            entry = entries.setdefault(key, _entry(image, file))
            entry.tags = {**(entry.tags or {}), table[label]: is_there}
    if not any(entry.shapes for entry in entries.values()):  # image-level labels only
        for entry in entries.values():
            entry.shapes = None
    class_names = tuple(dict.fromkeys(table))
    return Annotations(list(entries.values()), names=class_names, tag_names=class_names, tags_are_complete=False)


def _always(image: str) -> bool:
    del image
    return True


def _tables(place: Place) -> tuple[list[Path], list[Path], dict[str, str]]:
    """Returns the tables of boxes and of whole images, and the name of each machine id."""
    boxes, presences, names = [], [], {}
    for file in place.by_suffix(".csv"):
        rows = rows_of(file)
        header = next(rows, (0, []))[1]
        if set(BOX_COLUMNS) <= set(header):
            boxes.append(file)
        elif {IMAGE, LABEL, CONFIDENCE} <= set(header):
            presences.append(file)
        elif len(header) == 2 and (header == list(tables.CLASS_COLUMNS) or header[0].startswith(ID_PREFIX)):
            names |= tables.read_classes(file)
    return boxes, presences, names


def _ids(files: Sequence[Path]) -> tuple[str, ...]:
    ids: set[str] = set()
    for file in files:
        rows = rows_of(file)
        column = next(rows)[1].index(LABEL)
        ids |= {row[column] for _, row in rows if len(row) > column}
    return tuple(sorted(ids))


def _entry(image: str, file: Path) -> Entry:
    return Entry(image, str(file), file.parent, split=_split(file), shapes=[], shares=True)


def _split(file: Path) -> str:
    return split_of(*file.stem.replace("_", "-").split("-"), file.parent.name)


def write(dataset: Dataset, out: Out) -> None:
    """Writes the tables of classes, boxes and whole images, and a folder of images for each split."""
    names = object_names(dataset) or dataset.classes.get("multi_label", ())
    mids: Mapping[str, str] = {name: f"/m/{number:05d}" for number, name in enumerate(names)}
    _write(out, tables.CLASSES[0], [tables.CLASS_COLUMNS, *((mid, name) for name, mid in mids.items())])
    for split, records in by_split(dataset):
        boxes: list[Sequence[object]] = [(*BOX_COLUMNS, "IsGroupOf")]
        presences: list[Sequence[object]] = [(IMAGE, LABEL, CONFIDENCE)]
        for record in records:
            image = out.put_image(record, FILE_SPLITS[split]).stem
            boxes += [(image, mids[shape.label], *_corners(shape, record.size)) for shape in record.shapes or ()]
            tags = tags_of(record) or {}
            labelled_names = [name for name in names if record.tags is None or name in record.tags]
            presences += [(image, mids[name], int(tags.get(name, False))) for name in labelled_names]
        _write(out, f"{FILE_SPLITS[split]}-{tables.BOXES[0]}", boxes)
        _write(out, f"{FILE_SPLITS[split]}-{tables.PRESENCES[0]}", presences)


def _corners(shape: Shape, size: tuple[int, int]) -> Iterator[object]:
    sides = zip(shape.xyxy, (*size, *size), strict=True)
    yield from (short(value / length) for value, length in sides)
    yield int(shape.crowd)


def _write(out: Out, name: str, rows: Sequence[Sequence[object]]) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(rows)
    out.file(name).write_text(stream.getvalue(), encoding="utf-8", newline="")
