"""Palette files, which map colours or indices of masks to classes: CSV, text, JSON, and CVAT's labelmap.txt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mtl_jax.data.formats.mask_files import Colour
from mtl_jax.data.formats.parsing import integer, items, lines_of, rows_of, text
from mtl_jax.data.formats.place import Place
from mtl_jax.data.sources.base import read_json
from mtl_jax.errors import UserError

SUFFIXES = (".csv", ".txt", ".json")
VOID_NAMES = ("void", "ignore", "ignored", "unlabelled", "unlabeled")
BLACK = (0, 0, 0)
_NUMBERS = re.compile(r"^(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\S.*)$")  # CamVid's: red green blue name
_LABEL_MAP = re.compile(r"^([^:#]+):(\d+),(\d+),(\d+):.*$")  # CVAT's: name:red,green,blue:parts:actions
_NAME = re.compile(r"^\w[\w \-/().]*$")
_HEX = re.compile(r"^#?([0-9a-fA-F]{6})$")


class Palette(NamedTuple):
    """Class names and colours of masks.

    Attributes:
        file: the palette file.
        names: class names in order, without void.
        colours: colour -> index in `names`, -1 for void; empty if the file has names only.
    """

    file: Path
    names: tuple[str, ...]
    colours: dict[Colour, int]


def palette_of(place: Place, roots: Sequence[Path]) -> Palette | None:
    """Returns the first palette near the masks, preferably with colours.

    Raises:
        UserError: a palette has a repeated colour or name.
    """
    files = [
        file
        for file in dict.fromkeys(
            [*place.below, *(candidate for root in roots for candidate in sorted(root.iterdir()))]
        )
        if file.suffix.lower() in SUFFIXES and file.is_file()
    ]
    palettes = [palette for file in files if (palette := _read_palette(file)) is not None]
    return next((candidate for candidate in palettes if candidate.colours), palettes[0] if palettes else None)


def _read_palette(file: Path) -> Palette | None:
    try:
        rows = _READERS[file.suffix.lower()](file)
    except UserError:  # not a palette
        return None
    if not rows:
        return None
    colours = [colour for _, colour in rows if colour is not None]
    names = [name for name, _ in rows]
    if len(set(colours)) < len(colours) or len(set(names)) < len(names):
        repeated = next(entry for entry in (*names, *colours) if (*names, *colours).count(entry) > 1)
        raise UserError(f"{file}: expected each name and colour once, found {repeated} more often; correct the file")
    if not colours:
        return Palette(file, tuple(names), {})
    class_names = [name for name in names if name.lower() not in VOID_NAMES]
    numbers = {
        colour: class_names.index(name) if name in class_names else -1 for name, colour in rows if colour is not None
    }
    return Palette(file, tuple(class_names), numbers)


Rows = list[tuple[str, Colour | None]]


def _csv(file: Path) -> Rows:
    rows = list(rows_of(file))
    header = [cell.lower() for cell in rows[0][1]] if rows else []
    columns = [
        next((i for i, name in enumerate(header) if name in (word, word[0])), None) for word in ("red", "green", "blue")
    ]
    name = next((header.index(word) for word in ("name", "class", "label", "class_name") if word in header), None)
    if name is None or None in columns:
        return []
    return [
        (
            text(row[name], f"{file}, line {line}"),
            _colour([row[i] for i in columns if i is not None], f"{file}, line {line}"),
        )
        for line, row in rows[1:]
        if len(row) == len(header)
    ]


def _txt(file: Path) -> Rows:
    rows: Rows = []
    for number, line in lines_of(file):
        if line.startswith("#"):
            continue
        location = f"{file}, line {number}"
        if match := _NUMBERS.match(line):
            rows.append((match[4].strip(), _colour(match.groups()[:3], location)))
        elif match := _LABEL_MAP.match(line):
            rows.append((match[1].strip(), _colour(match.groups()[1:], location)))
        elif _NAME.match(line) and file.stem.lower() in ("classes", "labels", "names", "class_names"):
            rows.append((line, None))
        else:
            return []
    return rows


def _json(file: Path) -> Rows:
    content = read_json(file)
    if isinstance(content, dict):
        content = content.get("classes", content.get("categories", content))
    if isinstance(content, dict):
        if content and all(isinstance(value, str) and key.isdigit() for key, value in content.items()):
            ordered = sorted(content.items(), key=lambda item: int(item[0]))
            return [(value, None) for _, value in ordered] if int(ordered[-1][0]) == len(ordered) - 1 else []
        return [(text(name, str(file)), _colour(colour, f"{file}: {name}")) for name, colour in content.items()]
    entries = items(content, str(file))
    if all(isinstance(entry, str) for entry in entries):
        return [(name, None) for name in entries]
    return [
        (text(entry.get("name"), str(file)), _colour(entry.get("color", entry.get("colour")), str(file)))
        for entry in entries
    ]


def _colour(value: Any, location: str) -> Colour:
    if isinstance(value, str) and (match := _HEX.match(value)):
        value = [*bytes.fromhex(match[1])]
    if not isinstance(value, list | tuple) or len(value) not in (3, 4):
        raise UserError(f"{location}: expected a colour of three numbers, found {str(value)[:40]}; correct the file")
    red, green, blue = (integer(channel, location, most=256) for channel in value[:3])
    return red, green, blue


_READERS = {".csv": _csv, ".txt": _txt, ".json": _json}
