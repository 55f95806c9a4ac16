"""Tables: a column of images, and columns of classes, numbers, tags or corners of boxes."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mtl_jax.data.files import SUFFIXES
from mtl_jax.data.formats.entries import SPLIT_WORDS, Annotations, Entry, RawShape, split_of
from mtl_jax.data.formats.parsing import coordinate, integer, rows_of
from mtl_jax.data.formats.place import DETECTION_FILES, Place
from mtl_jax.data.formats.records import Dataset, Record, tags_of
from mtl_jax.data.formats.writing import Out, by_split, number, simple
from mtl_jax.errors import UserError

IMAGE_COLUMNS = ("image", "file", "filename", "path", "img", "image_id", "imageid", "id", "name")
SPLIT_COLUMNS = ("split", "set", "subset", "partition")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
CLASS_COLUMNS = ("class", "label", "category", "name")  # of boxes
SIZE_COLUMNS = ("width", "height")
DIVIDERS = re.compile(r"[|;,]")  # between the tags of a cell
EMPTY = ("", "na", "n/a", "nan", "none", "null", "?")
FALSE_AND_TRUE = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


class Table(NamedTuple):
    """A table with its columns."""

    file: Path
    header: list[str]  # in lower case
    rows: list[tuple[int, list[str]]]  # number of the line, cells
    image: int  # column
    split: int | None
    column_names: list[str]  # the header as written


def is_csv(place: Place) -> bool:
    """Returns whether a table has a column of images."""
    return any(
        _image_column([cell.lower() for cell in header], [row for _, row in _first_rows(file)], place) is not None
        for file, header in place.first_tables()
    )


def read_labels(place: Place, kind: str | None) -> Annotations:
    """Reads the tables that have a column of images.

    Raises:
        UserError: a table is broken, or its label column is ambiguous.
    """
    entries: list[Entry] = []
    columns: list[str] = []
    complete, skipped = True, 0
    for file in place.by_suffix(".csv", ".tsv"):
        table = _table(file, place)
        if table is None:
            skipped += 1
            continue
        fill, kind_names, is_complete = _filler(table, place.column, kind)
        columns += [name for name in kind_names if name not in columns]
        complete &= is_complete
        for line, cells in table.rows:
            location = f"{file}, line {line}"
            entry = Entry(cells[table.image], location, file.parent, split=_split(cells, table, file))
            fill(entry, cells)
            entries.append(entry)
    counts = Counter({"tables without a column of images, not read": skipped})
    return Annotations(_merge_by_image(entries), tag_names=columns or None, tags_are_complete=complete, counts=counts)


def _merge_by_image(entries: Sequence[Entry]) -> list[Entry]:
    """Merges rows of boxes of the same image."""
    merged_entries: list[Entry] = []
    by_image: dict[object, Entry] = {}
    for entry in entries:
        first = by_image.get(entry.image) if entry.shapes is not None else None
        if first is not None and first.shapes is not None and entry.shapes is not None:
            first.shapes += entry.shapes
        else:
            by_image[entry.image] = entry
            merged_entries.append(entry)
    return merged_entries


def _first_rows(file: Path) -> list[tuple[int, list[str]]]:
    try:
        return [row for _, row in zip(range(DETECTION_FILES + 1), rows_of(file), strict=False)][1:]
    except UserError:
        return []


def _image_column(header: Sequence[str], rows: Sequence[Sequence[str]], place: Place) -> int | None:
    """Returns the column of image names, with or without suffix."""
    for index in range(len(header)):
        cells = [row[index] for row in rows if index < len(row)]
        if 2 * sum(PurePosixPath(cell.replace("\\", "/")).suffix.lower() in SUFFIXES for cell in cells) > len(cells):
            return index
    stems = {image.stem for image in place.images}
    for index in (header.index(name) for name in IMAGE_COLUMNS if name in header):
        if any(row[index] in stems for row in rows if index < len(row)):
            return index
    return None


def _table(file: Path, place: Place) -> Table | None:
    numbered = list(rows_of(file))
    if len(numbered) < 2:
        return None
    column_names = numbered[0][1]
    header, rows = [cell.lower() for cell in column_names], numbered[1:]
    image = _image_column(header, [row for _, row in rows[:DETECTION_FILES]], place)
    if image is None:
        return None
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(f"{file}, line {line}: expected {len(header)} cells, found {len(row)}; correct the row")
    split = next((header.index(name) for name in SPLIT_COLUMNS if name in header), None)
    if split is not None and not all(row[split].lower() in SPLIT_WORDS for _, row in rows):
        split = None
    return Table(file, header, rows, image, split, column_names)


def _split(cells: Sequence[str], table: Table, file: Path) -> str:
    return split_of(cells[table.split]) if table.split is not None else split_of(file.stem)


Fill = Callable[[Entry, Sequence[str]], None]


def _filler(table: Table, column: str | None, kind: str | None) -> tuple[Fill, list[str], bool]:
    """Returns a function that fills an entry from a row, the classes in order, and whether unlisted tags are false."""
    if column is None and kind in (None, "boxes", "tags") and set(CORNERS) <= set(table.header):
        return _boxes(table), [], True
    candidates = [i for i in range(len(table.header)) if i not in (table.image, table.split)]
    if column is not None:
        candidates = [i for i in candidates if table.column_names[i] == column] or [
            i for i in candidates if table.header[i] == column.lower()
        ]
    by_kind = {i: _kind_of(_cells(table, i)) for i in candidates}
    flags = [i for i in candidates if by_kind[i] == "flags"]
    if _are_tags(flags, by_kind, column, kind):
        return _flags(table, flags), [table.column_names[i] for i in flags], False
    if len(candidates) > 1 and kind is not None:
        candidates = [i for i in candidates if _can_be(by_kind[i], kind)]
    if len(candidates) != 1:
        names = ", ".join(name for i, name in enumerate(table.column_names) if i not in (table.image, table.split))
        expected = f"a column {column!r}" if column is not None else f"one column{f' of {kind}' if kind else ''}"
        raise UserError(
            f"{table.file}, line 1: expected {expected} among {names or 'none'}, found "
            f"{len(candidates)}; name it, as in {table.file.name}:{(names or 'age').split(', ')[0]}"
        )
    (index,) = candidates
    label_kind = kind or {"numbers": "values", "flags": "values", "lists": "tags"}.get(by_kind[index], "classes")
    return _FILLERS[label_kind](table, index)


def _cells(table: Table, index: int) -> list[str]:
    return [row[index] for _, row in table.rows if row[index].lower() not in EMPTY]


def _kind_of(cells: Sequence[str]) -> str:
    if cells and all(cell.lower() in FALSE_AND_TRUE for cell in cells):
        return "flags"
    if cells and all(_number(cell) is not None for cell in cells):
        return "numbers"
    return "lists" if any(DIVIDERS.search(cell) for cell in cells) else "words"


def _are_tags(flags: Sequence[int], by_kind: Mapping[int, str], column: str | None, kind: str | None) -> bool:
    """Whether columns of 0 and 1 are tags, each by the column's name, and no column has their names in its cells."""
    if kind == "tags":
        return bool(flags) and not {"lists", "words"} & set(by_kind.values())
    return kind is None and column is None and 1 < len(flags) == len(by_kind)


def _can_be(column_kind: str, kind: str) -> bool:
    return column_kind in {"values": ("numbers", "flags"), "classes": ("words",), "tags": ("lists", "words")}.get(
        kind, ()
    )


def _number(cell: str) -> float | None:
    try:
        value = float(cell.replace(",", ".", 1))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _classes(table: Table, index: int) -> tuple[Fill, list[str], bool]:
    def fill(entry: Entry, cells: Sequence[str]) -> None:
        entry.class_name = cells[index] if cells[index].lower() not in EMPTY else None

    values = set(_cells(table, index))
    in_order = sorted(values, key=lambda name: (_number(name) is None, _number(name) or 0.0, name))
    return fill, in_order, True


def _values(table: Table, index: int) -> tuple[Fill, list[str], bool]:
    def fill(entry: Entry, cells: Sequence[str]) -> None:
        if cells[index].lower() not in EMPTY:
            entry.value = _number(cells[index])
            if entry.value is None or abs(entry.value) > 3e38:  # the largest number of 32 bits
                raise UserError(f"{entry.location}: expected a number, found {cells[index][:40]!r}; correct the row")

    return fill, [], True


def _tags(table: Table, index: int) -> tuple[Fill, list[str], bool]:
    def fill(entry: Entry, cells: Sequence[str]) -> None:
        tags = [tag.strip() for tag in DIVIDERS.split(cells[index])]
        entry.tags = {tag: True for tag in tags if tag}

    return fill, [], True


_FILLERS = {"classes": _classes, "values": _values, "tags": _tags}


def _flags(table: Table, columns: Sequence[int]) -> Fill:
    def fill(entry: Entry, cells: Sequence[str]) -> None:
        entry.tags = {
            table.column_names[i]: FALSE_AND_TRUE[cells[i].lower()] for i in columns if cells[i].lower() not in EMPTY
        }

    return fill


def _boxes(table: Table) -> Fill:
    corners = [table.header.index(name) for name in CORNERS]
    names = [table.header.index(name) for name in CLASS_COLUMNS if name in table.header]
    sizes = [table.header.index(name) for name in SIZE_COLUMNS if name in table.header]
    if not names:
        raise UserError(f"{table.file}, line 1: expected a column of classes ({', '.join(CLASS_COLUMNS)}), found none")

    def fill(entry: Entry, cells: Sequence[str]) -> None:
        entry.shapes = []
        if not any(cells[i] for i in corners):  # an image without objects
            return
        x0, y0, x1, y1 = (coordinate(cells[i], entry.location) for i in corners)
        if len(sizes) == 2:
            width, height = (integer(cells[i] or 0, entry.location) for i in sizes)
            entry.size = (width, height) if min(width, height) else None
        entry.shapes.append(RawShape(cells[names[0]], (x0, y0, x1, y1)))

    return fill


def write(dataset: Dataset, out: Out) -> None:
    """Writes labels.csv and images/{split}: a column of classes, or one of 0 and 1 for each tag, and one of numbers; or
    a row for each box, with a table for each split.
    """
    if "detection" in dataset.classes:
        _write_boxes(dataset, out)
        return
    tags = () if "classification" in dataset.classes else dataset.classes.get("multi_label", ())
    columns = ["class"] if "classification" in dataset.classes else [*tags]
    columns += ["value"] if "value" in dataset.classes else []
    rows: list[list[object]] = []
    for split, records in by_split(dataset):
        for record in records:
            image = out.put_image(record, f"images/{split}").relative_to(out.folder).as_posix()
            rows.append([image, *([split] if dataset.splits else []), *_row(record, tags, dataset.classes)])
    _write(out, "labels.csv", [["image", *(["split"] if dataset.splits else []), *columns], *rows])


def _write(out: Out, name: str, rows: Sequence[Sequence[object]]) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(rows)
    out.file(name).write_text(stream.getvalue(), encoding="utf-8", newline="")


def _write_boxes(dataset: Dataset, out: Out) -> None:
    for split, records in by_split(dataset):
        rows: list[list[object]] = [["filename", *SIZE_COLUMNS, "class", *CORNERS]]
        for record in records:
            image = out.put_image(record, f"images/{split}").relative_to(out.folder).as_posix()
            shapes = list(simple(record.shapes, out.counts))
            rows += [[image, *record.size, shape.label, *map(number, shape.xyxy)] for shape in shapes]
            rows += [] if shapes else [[image, *record.size, *[""] * 5]]
        _write(out, f"{split or 'labels'}.csv", rows)


def _row(record: Record, tags: Sequence[str], classes: Mapping[str, Sequence[str]]) -> list[object]:
    row: list[object] = []
    if "classification" in classes:
        row.append(record.class_name or "")
    elif tags:
        record_tags = tags_of(record)
        missing = False if record.tags is None and record_tags is not None else None
        row += [
            "" if is_true is None else int(is_true)
            for is_true in ((record_tags or {}).get(tag, missing) for tag in tags)
        ]
    if "value" in classes:
        row.append("" if record.value is None else repr(record.value))
    return row
