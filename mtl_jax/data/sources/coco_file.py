"""A COCO annotation file: checked, with one entry per image file, and with plain numbers as ids."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mtl_jax.data.sources.base import read_bytes, read_json
from mtl_jax.errors import UserError

Id = int | str
NUMBER_OR_NAME = (int, str)
# What the entries of the file's lists must have, and of which types.
SECTIONS: dict[str, dict[str, tuple[type, ...]]] = {
    "images": {"id": NUMBER_OR_NAME, "file_name": (str,), "width": (int,), "height": (int,)},
    "annotations": {"image_id": NUMBER_OR_NAME, "category_id": NUMBER_OR_NAME},
    "categories": {"id": NUMBER_OR_NAME, "name": (str,)},
}
_CATEGORIES = re.compile(rb'"categories"\s*:\s*\[')


class Images(NamedTuple):
    """The images of a file, each once."""

    entries: list[Mapping[str, Any]]
    number: dict[Id, int]  # id -> which entry; several ids may mean one file
    repeated: tuple[str, ...]  # file names of the entries that were merged into earlier ones


def read(file: Path) -> dict[str, Any]:
    """Returns the content of an annotation file, whose lists have what `SECTIONS` says.

    Raises:
        UserError: it cannot be read, or lacks something.
    """
    return check(read_json(file), file)


def check(content: Any, file: Path) -> dict[str, Any]:
    """Returns the content of an annotation file, with plain numbers as ids.

    Raises:
        UserError: it lacks something.
    """
    for key, needed in SECTIONS.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{file}: expected a COCO file with a list {key!r}, found none; check the file")
        for entry in content[key]:
            _check_entry(entry, key, needed, file)
    categories = Counter(entry["id"] for entry in content["categories"])
    repeated = [number for number, count in categories.items() if count > 1]
    if repeated:
        raise UserError(
            f"{file}: expected every id of 'categories' once, found {repeated[0]!r} more often; correct the file"
        )
    if not content["images"]:
        raise UserError(f"{file}: expected images, found an empty list; check the file")
    return content


def _check_entry(entry: Any, key: str, needed: Mapping[str, tuple[type, ...]], file: Path) -> None:
    missing = [name for name in needed if not isinstance(entry, dict) or name not in entry]
    if missing:
        raise UserError(f"{file}: expected {missing} in each of {key!r}, found {entry}; correct the file")
    for name, kinds in needed.items():  # some writers know no whole numbers
        if int in kinds and type(entry[name]) is float and entry[name].is_integer():
            entry[name] = int(entry[name])
    misfits = [name for name, kinds in needed.items() if type(entry[name]) not in kinds]
    if misfits:
        raise UserError(f"{file}: expected numbers and names in {key!r}, found {misfits} in {entry}; correct the file")
    for name in needed:
        if name.endswith("id"):
            entry[name] = _as_number(entry[name])


def _as_number(number: Id) -> Id:
    """A number that is written as text, such as '7', is that number; '007' and 'a' are names."""
    is_number = isinstance(number, str) and number.isascii() and number.isdigit() and len(number) < 19
    return int(number) if is_number and str(int(number)) == number else number


def images_of(content: Mapping[str, Any], file: Path) -> Images:
    """Returns the images of a file, with entries of one image file merged.

    Raises:
        UserError: an id means two files, or a file has two sizes.
    """
    entries: list[Mapping[str, Any]] = []
    number: dict[Id, int] = {}
    by_name: dict[str, int] = {}
    repeated: list[str] = []
    for entry in content["images"]:
        name, size = str(PurePosixPath(entry["file_name"])), (entry["width"], entry["height"])
        if min(size) <= 0:
            raise UserError(f"{file}: expected the size of {name} in px, found {size[0]} x {size[1]}; correct the file")
        index = by_name.setdefault(name, len(entries))
        if index == len(entries):
            entries.append(entry)
        else:
            first = entries[index]
            if (first["width"], first["height"]) != size:
                raise UserError(
                    f"{file}: expected one size of {name}, found {first['width']} x {first['height']} and "
                    f"{size[0]} x {size[1]} px; correct the file"
                )
            repeated.append(name)
        if number.setdefault(entry["id"], index) != index:
            raise UserError(
                f"{file}: expected every id of 'images' once, found {entry['id']!r} more often, for "
                f"{entries[number[entry['id']]]['file_name']} and {name}; correct the file"
            )
    return Images(entries, number, tuple(repeated))


def names_of(content: Mapping[str, Any]) -> dict[Id, str]:
    """Returns the names of the categories, ordered by id."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    return {number: names[number] for number in sorted(names, key=lambda number: (isinstance(number, str), number))}


def read_names(file: Path) -> tuple[str, ...]:
    """Returns the names of a file's categories by id, each once, without reading the rest of it where possible.

    Raises:
        UserError: it cannot be read, or lacks something.
    """
    return _read_names(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _read_names(file: Path, changed_ns: int) -> tuple[str, ...]:
    del changed_ns
    raw = read_bytes(file, noun="a JSON file")
    places = [match.end() - 1 for match in _CATEGORIES.finditer(raw)]
    try:
        (place,) = places  # a second list of this name may stand anywhere
        entries, _ = json.JSONDecoder().raw_decode(raw[place:].decode("utf-8"))
        for entry in entries:
            _check_entry(entry, "categories", SECTIONS["categories"], file)
    except ValueError:
        entries = read(file)["categories"]
    return tuple(dict.fromkeys(names_of({"categories": entries}).values()))
