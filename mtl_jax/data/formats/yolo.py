"""YOLO: a text file for each image with boxes or polygons in relative coordinates, and data.yaml."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mtl_jax.data.files import is_image, walk
from mtl_jax.data.formats.coco import points_of
from mtl_jax.data.formats.entries import SPLIT_ORDER, Annotations, Entry, RawShape
from mtl_jax.data.formats.parsing import coordinates, integer, lines_of, read_yaml, text
from mtl_jax.data.formats.place import DETECTION_FILES, Place
from mtl_jax.data.formats.records import Dataset, Shape
from mtl_jax.data.formats.writing import NO_SPLIT, Out, by_split, object_names, short, simple
from mtl_jax.errors import UserError

YAML = (".yaml", ".yml")
NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "names.txt", "labels.txt")
NO_LABELS = (*NAME_FILES, "readme.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "trainval.txt")
MAX_CLASSES = 10_000  # without a file of names
KEYS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}


def is_yolo(place: Place) -> bool:
    """Returns whether a YAML file names classes, or text files have rows of YOLO labels."""
    if _description(place) is not None:
        return True
    texts = [file for file in place.by_suffix(".txt") if file.name.lower() not in NO_LABELS]
    return any(_is_labels(file) for file in texts[:DETECTION_FILES])


def read_labels(place: Place, kind: str | None) -> Annotations:
    """Reads the label files of all images; an image without one has no objects.

    Raises:
        UserError: a file is broken, or a class is beyond the names; names file and line.
    """
    del kind
    description = _description(place)
    names = _names(place, description)
    labels = {file for file in place.below if file.suffix.lower() == ".txt" and file.name.lower() not in NO_LABELS}
    by_stem: dict[str, list[Path]] = {}
    for file in sorted(labels):
        by_stem.setdefault(_key(file.stem), []).append(file)
    images, notes = _images(place, description)
    labelled_images = [(image, split, _labels_of(image, labels, by_stem)) for image, split in images]
    keypoints = description is not None and "kpt_shape" in description[1]
    rows = {file: list(_rows(file, keypoints)) for _, _, file in labelled_images if file is not None}
    if not names:
        notes.append(f"{place.path}: no file names the classes (data.yaml, classes.txt): they are called by number.")
    table = names or {number: str(number) for number in range(_largest(rows) + 1)}
    first = _first_class(rows, table)
    if first:
        notes.append(f"{place.path}: the classes are counted from 1: each is read as the name before.")
    entries = [
        Entry(
            image,
            str(file or image),
            split=split,
            shapes=[_raw_shape(row, table[row[0] - first]) for row in rows.get(file, ())] if file else [],
            shares=True,
        )
        for image, split, file in labelled_images
    ]
    result = Annotations(entries, names=list(table.values()), notes=notes)
    result.counts["label files without image"] = len([file for file in labels - set(rows) if _is_labels(file)])
    result.counts["images without label file, read as empty"] = sum(file is None for _, _, file in labelled_images)
    return result


Row = tuple[int, list[float], str]  # class, numbers, file and line


def _description(place: Place) -> tuple[Path, dict[str, Any]] | None:
    """Returns the YAML file that names classes, with its content."""
    for file in _files_near(place, *YAML)[:DETECTION_FILES]:
        try:
            content = read_yaml(file)
        except UserError as error:
            place.broken.append(error)
            continue
        if isinstance(content.get("names"), list | dict):
            return file, content
    return None


def _files_near(place: Place, *suffixes: str) -> list[Path]:
    """Returns files of the dataset, and of its parent folder if it has labels only."""
    above = [] if place.is_file or place.below_images else sorted(place.root.parent.iterdir())
    return [
        *place.by_suffix(*suffixes),
        *(file for file in above if file.suffix.lower() in suffixes and file.is_file()),
    ]


def _names(place: Place, description: tuple[Path, dict[str, Any]] | None) -> dict[int, str]:
    """Returns class number -> name; empty without a file of names."""
    if description is None:
        files = [
            file for file in (*place.below, *_files_near(place, ".txt", ".names")) if file.name.lower() in NAME_FILES
        ]
        return dict(enumerate(line for _, line in lines_of(files[0]))) if files else {}
    file, names = description[0], description[1]["names"]
    location = f"{file}: names"
    pairs = names.items() if isinstance(names, dict) else enumerate(names)
    by_number = {integer(number, location): text(name, location) for number, name in pairs}
    repeated = [name for name, count in Counter(by_number.values()).items() if count > 1]
    if repeated or not by_number:
        raise UserError(f"{location}: expected each name once, found {(repeated or ['none'])[0]}; correct the file")
    return dict(sorted(by_number.items()))


def _images(place: Place, description: tuple[Path, dict[str, Any]] | None) -> tuple[list[tuple[Path, str]], list[str]]:
    """Returns images with their splits, from the YAML file, a list file or the folders; and warnings."""
    if description is not None:
        images, missing = _named_images(place, description)
        if images and not missing:
            return images, []
        notes = [
            f"{description[0]}: {', '.join(missing)} is not there: the split of each image is that of its folder."
        ] * bool(missing)
        return [(image, place.split_of(image)) for image in place.images], notes
    return [(image, place.listed_split_of(image) or place.split_of(image)) for image in place.images], []


def _named_images(place: Place, description: tuple[Path, dict[str, Any]]) -> tuple[list[tuple[Path, str]], list[str]]:
    """Returns the images of the folders and lists in a YAML file, and the names of missing ones."""
    file, content = description
    bases = [file.parent / str(content.get("path") or "."), file.parent]
    images: dict[Path, str] = {}
    missing: list[str] = []
    for split in SPLIT_ORDER:
        entries = next((content[key] for key in KEYS[split] if content.get(key)), [])
        for entry in entries if isinstance(entries, list) else [entries]:
            source = _folder(text(entry, f"{file}: {split}"), bases)
            if source is None:
                missing.append(str(entry))
                continue
            files = _listed_images(source, place) if source.is_file() else filter(is_image, walk(source))
            for image in files:
                images.setdefault(image, split)
    return list(images.items()), missing


def _folder(name: str, bases: Sequence[Path]) -> Path | None:
    """Resolves a path of a YAML file; exporters write "../train/images" for a folder next to it."""
    path = name.replace("\\", "/")
    spellings = (path, path.removeprefix("../"), "/".join(Path(path).parts[-2:]))
    try:
        return next((base / spelling for spelling in spellings for base in bases if (base / spelling).exists()), None)
    except (OSError, ValueError):  # not a valid file name
        return None


def _listed_images(file: Path, place: Place) -> Iterator[Path]:
    by_end = {image.as_posix(): image for image in place.images}
    by_name = {image.name: image for image in place.images}
    for _, line in lines_of(file):
        path = line.replace("\\", "/")
        image = by_end.get((file.parent / path).as_posix()) or by_name.get(path.rpartition("/")[2])
        if image is not None:
            yield image


def _labels_of(image: Path, labels: set[Path], by_stem: dict[str, list[Path]]) -> Path | None:
    """Returns the label file of an image: in "labels" instead of "images", next to it, or the only one of its name."""
    components = list(image.parts)
    swapped = [i for i, component in enumerate(components[:-1]) if component.lower() == "images"]
    if swapped:
        file = Path(*components[: swapped[-1]], "labels", *components[swapped[-1] + 1 :]).with_suffix(".txt")
        if file in labels or file.is_file():  # the YAML file may name other image folders
            return file
    same_folder = image.with_suffix(".txt")
    if same_folder in labels:
        return same_folder
    same_stem = by_stem.get(_key(image.stem), [])
    return same_stem[0] if len(same_stem) == 1 else None


def _key(name: str) -> str:
    """Normalises accents, which systems encode in two ways."""
    return unicodedata.normalize("NFC", name)


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
        location = f"{file}, line {number}"
        words = line.split()
        count = len(words) - 1
        if count < 4 or (count > 5 and count % 2 and not keypoints):
            raise UserError(
                f"{location}: expected a class and x, y, width, height or a polygon, found {len(words)} numbers; "
                "correct the line"
            )
        numbers = _numbers(words[1:], location)
        yield integer(words[0], f"{location}: class"), numbers[:4] if keypoints or count == 5 else numbers, location


def _numbers(words: Sequence[str], location: str) -> list[float]:
    try:
        return coordinates([float(word) for word in words], location)
    except ValueError:
        return coordinates(words, location)  # raises with the word


def _first_class(rows: Mapping[Path, Sequence[Row]], names: Mapping[int, str]) -> int:
    """Returns the first class number, 0 or 1.

    Raises:
        UserError: a class has no name, or its number is too large.
    """
    all_rows = [row for file_rows in rows.values() for row in file_rows]
    numbers = {row[0] for row in all_rows}
    if numbers <= names.keys() and len(names) <= MAX_CLASSES:
        return 0
    if {number - 1 for number in numbers} <= names.keys() and max(numbers) == len(names):
        return 1
    row = next(row for row in all_rows if row[0] not in names or len(names) > MAX_CLASSES)
    raise UserError(
        f"{row[2]}: expected a class among the {len(names)} of {min(names)} to {max(names)}, found {row[0]}; "
        "correct it or the names"
    )


def _largest(rows: Mapping[Path, Sequence[Row]]) -> int:
    return min(max((row[0] for file_rows in rows.values() for row in file_rows), default=0), MAX_CLASSES)


def _raw_shape(row: Row, label: str) -> RawShape:
    _, numbers, location = row
    if len(numbers) > 4:
        return RawShape(label, polygons=(points_of(numbers, location),))
    x, y, width, height = numbers
    return RawShape(label, (x - width / 2, y - height / 2, x + width / 2, y + height / 2))


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
