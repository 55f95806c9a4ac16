"""Safe parsers for label files: finite numbers, XML without entities, plain YAML; errors name file and position."""

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

MAX_COORDINATE = 1e9  # px; larger than any image
MAX_YAML_CHARACTERS = 1_000_000  # of a dataset description


def coordinate(value: Any, location: str) -> float:
    """Parses a coordinate; NaN if it is not finite or too large, so that its object is dropped and counted.

    Args:
        value: a number or its text.
        location: file and position, for errors.

    Raises:
        UserError: the value is not a number.
    """
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = math.inf if isinstance(value, int) else None
    if number is None:
        raise UserError(f"{location}: expected a number, found {_short(value)}; correct the file")
    return number if abs(number) < MAX_COORDINATE else math.nan


def coordinates(values: Sequence[Any], location: str) -> list[float]:
    """Parses several coordinates, as `coordinate`.

    Raises:
        UserError: a value is not a number.
    """
    try:
        if {*map(type, values)} <= {int, float}:
            numbers = np.array(values, float)
            return np.where(np.abs(numbers) < MAX_COORDINATE, numbers, np.nan).tolist()
    except OverflowError:  # an integer of hundreds of digits
        pass
    return [coordinate(value, location) for value in values]


def integer(value: Any, location: str, *, least: int = 0, most: int = 2**31) -> int:
    """Parses an integer within bounds.

    Raises:
        UserError: the value is not such an integer.
    """
    number = coordinate(value, location)
    if not number.is_integer() or not least <= number < most:
        raise UserError(f"{location}: expected a whole number from {least}, found {_short(value)}; correct the file")
    return int(number)


def text(value: Any, location: str) -> str:
    """Parses a name and strips it; a number becomes text.

    Raises:
        UserError: the value is not a name, or empty.
    """
    string = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    name = string.strip()
    if not name:
        raise UserError(f"{location}: expected a name, found {_short(value)}; correct the file")
    return name


def table(value: Any, location: str) -> dict[str, Any]:
    """Checks that a value is a JSON object.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, dict):
        raise UserError(f"{location}: expected an object of names and values, found {_short(value)}; correct the file")
    return value


def items(value: Any, location: str) -> list[Any]:
    """Checks that a value is a JSON list.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, list):
        raise UserError(f"{location}: expected a list, found {_short(value)}; correct the file")
    return value


def read_xml(file: Path) -> ElementTree.Element:
    """Parses an XML file; entity declarations are rejected, because they can expand to gigabytes.

    Raises:
        UserError: the file cannot be read, is malformed, or declares entities.
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
    """Parses a YAML file of plain values.

    Raises:
        UserError: the file cannot be read, or is not a mapping.
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
    """Yields line number and cells of each row of a table separated by commas, semicolons or tabs; skips blank lines.

    Raises:
        UserError: the file cannot be read, or a row is malformed.
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
    """Returns the first row of a table; empty without rows.

    Raises:
        UserError: the file cannot be read.
    """
    return next(rows_of(file), (0, []))[1]


def lines_of(file: Path) -> Iterator[tuple[int, str]]:
    """Yields number and text of each nonblank line.

    Raises:
        UserError: the file cannot be read, or is not text.
    """
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def _short(value: Any) -> str:
    try:
        description = repr(value)
    except (ValueError, RecursionError):  # too many digits or nested levels
        description = type(value).__name__
    return description if len(description) <= 80 else f"{description[:80]}…"
