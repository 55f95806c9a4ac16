"""YOLO: one text file for each image with boxes or polygons as shares of its sides, and data.yaml."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from mtl_jax.data.files import is_image, walk
from mtl_jax.data.formats.coco import points_of
from mtl_jax.data.formats.entries import SPLIT_ORDER, Drawn, Entry, Found
from mtl_jax.data.formats.parsing import coordinate, lines_of, read_yaml, text, whole
from mtl_jax.data.formats.place import LOOKED_AT, Place
from mtl_jax.data.formats.records import Dataset, Shape
from mtl_jax.data.formats.writing import NO_SPLIT, Out, by_split, object_names, short, simple
from mtl_jax.errors import UserError

YAML = (".yaml", ".yml")
NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "names.txt", "labels.txt")
NO_LABELS = (*NAME_FILES, "readme.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "trainval.txt")
MOST_CLASSES = 10_000  # where no file names them
KEYS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}


def is_yolo(place: Place) -> bool:
    """Whether a YAML file names classes, or text files hold numbers as YOLO's do."""
    if _description(place) is not None:
        return True
    texts = [file for file in place.by_suffix(".txt") if file.name.lower() not in NO_LABELS]
    return any(_is_labels(file) for file in texts[:LOOKED_AT])


def read(place: Place, kind: str | None) -> Found:
    """Reads the label files of all images; an image without one has no objects.

    Raises:
        UserError: a file is broken, or a class is beyond the names; names file and line.
    """
    del kind
    description = _description(place)
    names = _names(place, description)
    counts: Counter[str] = Counter()
    labels = {file for file in place.below if file.suffix.lower() == ".txt" and file.name.lower() not in NO_LABELS}
    by_stem: dict[str, list[Path]] = {}
    for file in sorted(labels):
        by_stem.setdefault(file.stem, []).append(file)
    found: list[tuple[Path, str, Path | None]] = []
    for image, split in _images(place, description):
        found.append((image, split, _labels_of(image, labels, by_stem)))
    keypoints = description is not None and "kpt_shape" in description[1]
    rows = {file: list(_rows(file, keypoints)) for _, _, file in found if file is not None}
    counts["label files without image"] = len([file for file in labels - set(rows) if _is_labels(file)])
    counts["images without label file"] = sum(file is None for _, _, file in found)
    first = _first_class(rows, names)
    table = names or [str(number) for number in range(_largest(rows) + 1)]
    entries = [
        Entry(
            image,
            str(file or image),
            split=split,
            shapes=[_drawn(row, table[row[0] - first]) for row in rows.get(file, ())] if file else [],
            shares=True,
        )
        for image, split, file in found
    ]
    notes = [f"{place.path}: the classes are counted from 1: each is read as the name before."] if first else []
    if not names:
        notes.append(f"{place.path}: no file names the classes (data.yaml, classes.txt): they are called by number.")
    return Found(entries, names=table, counts=counts, notes=notes)


Row = tuple[int, list[float], str]  # class, numbers, file and line


def _description(place: Place) -> tuple[Path, dict[str, Any]] | None:
    """The YAML file that names classes, with its content."""
    for file in place.by_suffix(*YAML)[:LOOKED_AT]:
        try:
            content = read_yaml(file)
        except UserError as error:
            place.broken.append(error)
            continue
        if isinstance(content.get("names"), list | dict):
            return file, content
    return None


def _names(place: Place, description: tuple[Path, dict[str, Any]] | None) -> list[str]:
    if description is None:
        file = next((file for name in NAME_FILES for file in place.below if file.name.lower() == name), None)
        return [] if file is None else [line for _, line in lines_of(file)]
    file, names = description[0], description[1]["names"]
    where = f"{file}: names"
    if isinstance(names, dict):
        numbers = sorted((whole(number, where), text(name, where)) for number, name in names.items())
        if [number for number, _ in numbers] != list(range(len(numbers))):
            raise UserError(f"{where}: expected numbers from 0 without gaps, found {[n for n, _ in numbers][:5]}")
        names = [name for _, name in numbers]
    found = [text(name, where) for name in names]
    twice = [name for name, count in Counter(found).items() if count > 1]
    if twice or not found:
        raise UserError(f"{where}: expected each name once, found {(twice or ['none'])[0]}: correct the file")
    return found


def _images(place: Place, description: tuple[Path, dict[str, Any]] | None) -> Iterator[tuple[Path, str]]:
    """Yields each image with its split: as the YAML file says, or else by its folders."""
    named = list(_named_images(place, description)) if description is not None else []
    if named:
        yield from named
        return
    for image in place.images:
        yield image, place.split_of(image)


def _named_images(place: Place, description: tuple[Path, dict[str, Any]]) -> Iterator[tuple[Path, str]]:
    file, content = description
    bases = [file.parent / str(content.get("path") or "."), file.parent]
    for split in SPLIT_ORDER:
        places = [content[key] for key in KEYS[split] if content.get(key)][:1]
        for named in places[0] if places and isinstance(places[0], list) else places:
            found = _folder(text(named, f"{file}: {split}"), bases)
            if found is None:
                continue
            if found.is_file():
                yield from ((image, split) for image in _listed(found, place))
            else:
                yield from ((image, split) for image in walk(found) if is_image(image))


def _folder(named: str, bases: Sequence[Path]) -> Path | None:
    """Exporters write "../train/images" for what lies beside the YAML file."""
    plain = named.replace("\\", "/")
    spellings = (plain, plain.removeprefix("../"), "/".join(Path(plain).parts[-2:]))
    try:
        return next((base / each for each in spellings for base in bases if (base / each).exists()), None)
    except (OSError, ValueError):  # a name that no file can have
        return None


def _listed(file: Path, place: Place) -> Iterator[Path]:
    by_end = {image.as_posix(): image for image in place.images}
    by_name = {image.name: image for image in place.images}
    for _, line in lines_of(file):
        path = line.replace("\\", "/")
        image = by_end.get((file.parent / path).as_posix()) or by_name.get(path.rpartition("/")[2])
        if image is not None:
            yield image


def _labels_of(image: Path, labels: set[Path], by_stem: dict[str, list[Path]]) -> Path | None:
    """The label file of an image: below "labels" in place of "images", beside it, or the only one of its name."""
    parts = list(image.parts)
    swapped = [i for i, part in enumerate(parts[:-1]) if part.lower() == "images"]
    if swapped:
        file = Path(*parts[: swapped[-1]], "labels", *parts[swapped[-1] + 1 :]).with_suffix(".txt")
        if file in labels:
            return file
    beside = image.with_suffix(".txt")
    if beside in labels:
        return beside
    same = by_stem.get(image.stem, [])
    return same[0] if len(same) == 1 else None


def _is_labels(file: Path) -> bool:
    try:
        first = next(lines_of(file), None)
        if first is None:
            return False
        numbers = [float(word) for word in first[1].split()]
    except (UserError, ValueError):
        return False
    return len(numbers) >= 5 and numbers[0].is_integer() and numbers[0] >= 0


def _rows(file: Path, keypoints: bool) -> Iterator[Row]:
    for number, line in lines_of(file):
        where = f"{file}, line {number}"
        words = line.split()
        count = len(words) - 1
        if count < 4 or (count > 5 and count % 2 and not keypoints):
            raise UserError(
                f"{where}: expected a class and x, y, width, height or a polygon, found {len(words)} numbers: "
                "correct the line"
            )
        numbers = [coordinate(word, where) for word in words[1:]]
        yield whole(words[0], f"{where}: class"), numbers[:4] if keypoints or count == 5 else numbers, where


def _first_class(rows: dict[Path, list[Row]], names: Sequence[str]) -> int:
    """0 or 1: what the classes are counted from.

    Raises:
        UserError: a class is beyond the names, or of a number that no dataset has.
    """
    every = [row for of_file in rows.values() for row in of_file]
    least, most = min((row[0] for row in every), default=0), max((row[0] for row in every), default=0)
    count = len(names) or MOST_CLASSES
    if most < count:
        return 0
    if names and most == count and least == 1:
        return 1
    wrong = next(row for row in every if row[0] >= count)
    raise UserError(f"{wrong[2]}: expected a class from 0 to {count - 1}, found {wrong[0]}: correct it or the names")


def _largest(rows: dict[Path, list[Row]]) -> int:
    return max((row[0] for of_file in rows.values() for row in of_file), default=0)


def _drawn(row: Row, label: str) -> Drawn:
    _, numbers, where = row
    if len(numbers) > 4:
        return Drawn(label, polygons=(points_of(numbers, where),))
    x, y, width, height = numbers
    return Drawn(label, (x - width / 2, y - height / 2, x + width / 2, y + height / 2))


def write(dataset: Dataset, out: Out) -> None:
    """Writes images/{split}, labels/{split} and data.yaml; crowds are left out."""
    names = object_names(dataset)
    content: dict[str, Any] = {"path": "."}
    for split, records in by_split(dataset):
        folder = split or NO_SPLIT
        content[folder] = f"images/{folder}"
        for record in records:
            image = out.put_image(record, f"images/{folder}")
            lines = [_line(shape, names, record.size) for shape in simple(record.shapes, out.counts)]
            file = out.file(f"labels/{folder}/{image.stem}.txt")
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    content["names"] = dict(enumerate(names))
    out.file("data.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _line(shape: Shape, names: Sequence[str], size: tuple[int, int]) -> str:
    width, height = size
    if shape.polygons:
        numbers = [side for x, y in shape.polygons[0] for side in (x / width, y / height)]
    else:
        left, top, right, bottom = shape.xyxy
        numbers = [
            (left + right) / 2 / width,
            (top + bottom) / 2 / height,
            (right - left) / width,
            (bottom - top) / height,
        ]
    return " ".join([str(names.index(shape.label)), *map(short, numbers)])
