"""Reads numbers, XML and YAML of label files: finite numbers, no entities, no objects; refusals name file and place."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
import yaml

from mtl_jax.data.sources.base import read_bytes, read_text
from mtl_jax.errors import UserError

FAR_PX = 1e9  # no image is so large
MAX_YAML_CHARACTERS = 1_000_000  # of a description of a dataset


def coordinate(value: Any, location: str) -> float:
    """Returns a number; NaN where it is not finite or beyond all images, for its object to be dropped and counted.

    Args:
        value: a number, or text that is one.
        location: file and place, as the error names them.

    Raises:
        UserError: it is no number.
    """
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = math.inf if isinstance(value, int) else None
    if number is None:
        raise UserError(f"{location}: expected a number, found {_short(value)}; correct the file")
    return number if abs(number) < FAR_PX else math.nan


def coordinates(values: Sequence[Any], location: str) -> list[float]:
    """Returns several numbers, each as `coordinate` does.

    Raises:
        UserError: one is no number.
    """
    try:
        if {*map(type, values)} <= {int, float}:
            numbers = np.array(values, float)
            return np.where(np.abs(numbers) < FAR_PX, numbers, np.nan).tolist()
    except OverflowError:  # of a whole number of hundreds of digits
        pass
    return [coordinate(value, location) for value in values]


def integer(value: Any, location: str, *, least: int = 0, most: int = 2**31) -> int:
    """Returns a whole number within bounds.

    Raises:
        UserError: it is none.
    """
    number = coordinate(value, location)
    if not number.is_integer() or not least <= number < most:
        raise UserError(f"{location}: expected a whole number from {least}, found {_short(value)}; correct the file")
    return int(number)


def text(value: Any, location: str) -> str:
    """Returns a name without the blanks around it; a number becomes its text.

    Raises:
        UserError: it is none, or empty.
    """
    string = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    name = string.strip()
    if not name:
        raise UserError(f"{location}: expected a name, found {_short(value)}; correct the file")
    return name


def table(value: Any, location: str) -> dict[str, Any]:
    """Returns a JSON object.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(value, dict):
        raise UserError(f"{location}: expected an object of names and values, found {_short(value)}; correct the file")
    return value


def items(value: Any, location: str) -> list[Any]:
    """Returns a JSON list.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(value, list):
        raise UserError(f"{location}: expected a list, found {_short(value)}; correct the file")
    return value


def read_xml(file: Path) -> ElementTree.Element:
    """Reads an XML file; one that declares entities, by which a few bytes could stand for gigabytes, is refused.

    Raises:
        UserError: it cannot be read, is broken, or declares entities.
    """
    content = read_bytes(file, noun="an XML file")

    def refuse(*_: Any) -> None:
        raise UserError(f"{file}: expected XML without entities of its own, found some; remove its DOCTYPE")

    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()
    parser.buffer_text = True
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
        return builder.close()
    except UserError:
        raise
    except (expat.ExpatError, ValueError, LookupError, AssertionError) as error:
        raise UserError(f"{file}: expected an XML file, found {error}; replace it by a complete copy") from error


def read_yaml(file: Path) -> dict[str, Any]:
    """Reads a YAML file of plain values.

    Raises:
        UserError: it cannot be read or is no table.
    """
    content = read_text(file)
    if len(content) > MAX_YAML_CHARACTERS:
        raise UserError(f"{file}: expected the description of a dataset, found {len(content)} characters; shorten it")
    try:
        return table(yaml.safe_load(content), str(file))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: expected a YAML file, found {error}; correct the file") from error


def rows_of(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields line number and cells of each row of a table that commas, semicolons or tabs divide; blank lines are none.

    Raises:
        UserError: it cannot be read, or a row is broken.
    """
    content = read_text(file)
    first = content.partition("\n")[0]
    delimiter = max((",", ";", "\t"), key=first.count)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: expected a row of CSV, found {error}; correct it") from error


def header_of(file: Path) -> list[str]:
    """Returns the first row of a table; empty where there is none.

    Raises:
        UserError: it cannot be read.
    """
    return next(rows_of(file), (0, []))[1]


def lines_of(file: Path) -> Iterator[tuple[int, str]]:
    """Yields number and text of each line that is not blank.

    Raises:
        UserError: it cannot be read, or is no text.
    """
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def _short(value: Any) -> str:
    try:
        description = repr(value)
    except (ValueError, RecursionError):  # more digits or levels than Python writes
        description = type(value).__name__
    return description if len(description) <= 80 else f"{description[:80]}…"
