"""The tables of Open Images, read row by row: names of classes, boxes, labels of whole images, and masks."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from mtl_jax.errors import UserError

SPLIT_NAMES = {"train": ("train",), "val": ("validation", "val")}  # our names -> Open Images'
VERSIONS = ("", "oidv7-", "oidv6-")  # what some of the official files' names begin with
CLASSES = ("class-descriptions-boxable.csv", "class-descriptions.csv")
BOXES = ("annotations-bbox.csv",)
PRESENCES = ("annotations-human-imagelabels-boxable.csv", "annotations-human-imagelabels.csv")
MASKS = ("annotations-object-segmentation.csv",)

CLASS_COLUMNS = ("LabelName", "DisplayName")
CORNERS = ("XMin", "YMin", "XMax", "YMax")
SLACK = 0.01  # of the image's side: how far outside of it a coordinate may lie, to be clipped

NOTHING: Mapping[str, str] = MappingProxyType({})

IsWanted = Callable[[str], bool]
Corners = tuple[float, float, float, float]  # left, top, right, bottom, as shares of the image's sides


class Box(NamedTuple):
    """One annotated object."""

    label: int
    corners: Corners
    crowd: bool
    mask: str | None = None  # name of the file

    @property
    def area(self) -> float:
        """Share of the image; 0 where a corner is not left of and above the other."""
        return max(0.0, self.corners[2] - self.corners[0]) * max(0.0, self.corners[3] - self.corners[1])


def places(base: Path, tables: Sequence[str], split: str | None = None) -> list[Path]:
    """Returns where a table may be, by its official names, in order of preference.

    Args:
        base: the folder of the dataset.
        tables: ends of the names.
        split: "train" or "val", where each split has a table of its own.
    """
    names = tables if split is None else [f"{name}-{table}" for table in tables for name in SPLIT_NAMES[split]]
    return [base / f"{version}{name}" for name in names for version in VERSIONS]


def read_classes(file: Path) -> dict[str, str]:
    """Returns the name of every class by its machine id, in the file's order.

    Raises:
        UserError: the file is broken or empty.
    """
    # The files of versions 4 to 6 have no header.
    names = {mid: name for _, (mid, name) in _rows(file, CLASS_COLUMNS, header=False) if mid != CLASS_COLUMNS[0]}
    if not names:
        raise UserError(f"{file}: expected rows of machine id and name, found none; use a complete copy")
    return names


def read_boxes(
    file: Path, labels: Mapping[str, int], is_wanted: IsWanted, *, optional: Mapping[str, str] = NOTHING
) -> Iterator[tuple[str, Box]]:
    """Yields image and object of every wanted row.

    Args:
        file: the table.
        labels: machine id -> label of the wanted classes.
        is_wanted: whether an image's rows of these classes are.
        optional: value of a column that may be missing, by name.

    Raises:
        UserError: the file is broken; names the line.
    """
    columns = ("ImageID", "LabelName", "IsGroupOf", *CORNERS)
    for line, (image, mid, group, *corners) in _rows(file, columns, optional=optional):
        if mid in labels and is_wanted(image):
            is_group = _numbers((group,), file, line)[0] == 1  # -1 is unknown
            yield image, Box(labels[mid], _corners(corners, file, line), is_group)


def read_presences(file: Path, labels: Mapping[str, int], is_wanted: IsWanted) -> Iterator[tuple[str, int, bool]]:
    """Yields image, label, and whether it is there, of every wanted row that people have verified.

    Args:
        file: the table.
        labels: machine id -> label of the wanted classes.
        is_wanted: whether an image's rows of these classes are.

    Raises:
        UserError: the file is broken; names the line.
    """
    for line, (image, mid, confidence) in _rows(file, ("ImageID", "LabelName", "Confidence")):
        if mid in labels and is_wanted(image):
            value = _numbers((confidence,), file, line)[0]
            if value in (0, 1):
                yield image, labels[mid], value == 1


def read_masks(file: Path, labels: Mapping[str, int], is_wanted: IsWanted) -> Iterator[tuple[str, Box]]:
    """Yields image and object, with its mask, of every wanted row.

    Args:
        file: the table.
        labels: machine id -> label of the wanted classes.
        is_wanted: whether an image's rows of these classes are.

    Raises:
        UserError: the file is broken; names the line.
    """
    columns = ("MaskPath", "ImageID", "LabelName", *(f"Box{corner}" for corner in CORNERS))
    for line, (mask, image, mid, *corners) in _rows(file, columns):
        if mid in labels and is_wanted(image):
            yield image, Box(labels[mid], _corners(corners, file, line), False, mask)


def _rows(
    file: Path, columns: Sequence[str], *, header: bool = True, optional: Mapping[str, str] = NOTHING
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yields the number of the line and the cells of the named columns; without a header, those are all.

    A column that may be missing has the one value that `optional` says.
    """
    line = 0
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            found_columns = next(reader, []) if header else list(columns)
            default_columns = {name: value for name, value in optional.items() if name not in found_columns}
            missing = [name for name in columns if name not in found_columns and name not in default_columns]
            if missing:
                raise UserError(
                    f"{file}, line 1: expected the columns {', '.join(columns)}, found no {', '.join(missing)}; "
                    "use a complete copy"
                )
            pick = itemgetter(*([*found_columns, *default_columns].index(name) for name in columns))
            for row in reader:
                line = reader.line_num
                if len(row) == len(found_columns):
                    yield line, pick([*row, *default_columns.values()])
                elif row:  # a blank line is no row
                    raise UserError(
                        f"{file}, line {line}: expected {len(found_columns)} cells, found {len(row)}; fix the row"
                    )
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: expected a CSV file, found {error}; replace it by a complete copy") from error
    except csv.Error as error:
        raise UserError(f"{file}, line {line + 1}: expected a row of CSV, found {error}; fix the row") from error


def _numbers(cells: Sequence[str], file: Path, line: int) -> list[float]:
    try:
        return [float(cell) for cell in cells]
    except ValueError as error:
        raise UserError(f"{file}, line {line}: expected numbers, found {', '.join(cells)}; correct the row") from error


def _corners(cells: Sequence[str], file: Path, line: int) -> Corners:
    numbers = _numbers(cells, file, line)
    if not all(-SLACK <= number <= 1 + SLACK for number in numbers):  # which refuses NaN too
        raise UserError(
            f"{file}, line {line}: expected corners as shares of the image, 0 to 1, found {', '.join(cells)}; "
            "correct the row"
        )
    left, top, right, bottom = (min(max(number, 0.0), 1.0) for number in numbers)
    return left, top, right, bottom
