"""Output folder shared by all writers: paths and names of images, and counts of labels that a format cannot hold."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from mtl_jax.data.formats.records import Dataset, Record, Shape
from mtl_jax.data.images import read_header, read_image

NO_SPLIT = "train"  # folder of images without a split, in formats that need one


class Out:
    """Output folder of a converted dataset.

    Args:
        folder: output folder.
        dataset: dataset to write.

    Attributes:
        counts: counts by name of labels that the format cannot represent.
    """

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        self.folder = folder
        self.counts: Counter[str] = Counter()
        self._names = _unique_names(dataset.records)

    def put_image(self, record: Record, folder: str = ".") -> Path:
        """Copies an image and returns the new file; an image with an EXIF orientation is stored upright, as PNG.

        Args:
            record: record of the image.
            folder: folder relative to the output folder.
        """
        target = self.folder / folder / self._names[record.name]
        target.parent.mkdir(parents=True, exist_ok=True)
        if read_header(record.image).is_turned:
            target = target.with_name(f"{target.name}.png")
            Image.fromarray(read_image(record.image).upright).save(target)
            self.counts["images stored upright"] += 1
        else:
            shutil.copyfile(record.image, target)
        return target

    def folder_name(self, name: str) -> str:
        """Converts a class name to a valid folder name, and counts changed names."""
        safe_name = "".join("_" if letter in '/\\:*?"<>|' or not letter.isprintable() else letter for letter in name)
        safe_name = f"_{safe_name}" if safe_name.startswith(".") else safe_name
        self.counts["classes renamed for the disk"] += safe_name != name
        return safe_name

    def file(self, name: str) -> Path:
        """Returns the path of an output file, and creates its folder."""
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def _unique_names(records: Sequence[Record]) -> dict[str, str]:
    """Returns name in the dataset -> file name without folders, with unique stems."""
    flat = {record.name: record.name.replace("/", "__") for record in records}
    stems = Counter(PurePosixPath(name).stem for name in flat.values())
    return {
        name: new if stems[PurePosixPath(new).stem] == 1 else f"{new.replace('.', '_')}{PurePosixPath(new).suffix}"
        for name, new in flat.items()
    }


def by_split(dataset: Dataset) -> Iterator[tuple[str, list[Record]]]:
    """Yields each split with its records; "" without splits."""
    for split in dataset.splits or ("",):
        yield split, [record for record in dataset.records if record.split == split]
    unassigned = [record for record in dataset.records if not record.split] if dataset.splits else []
    if unassigned:
        yield "", unassigned


def object_names(dataset: Dataset) -> tuple[str, ...]:
    """Returns the classes of a dataset's objects; empty without objects."""
    return dataset.classes.get("detection", ())


def simple(shapes: Sequence[Shape] | None, counts: Counter[str]) -> Iterator[Shape]:
    """Yields objects for formats of boxes and single polygons: without crowds, one object for each polygon.

    Args:
        shapes: objects of an image.
        counts: receives the counts of lost labels.
    """
    for shape in shapes or ():
        if shape.crowd:
            counts["crowds left out"] += 1
            continue
        if shape.runs is not None:
            counts["outlines of pixels written as boxes"] += 1
        if len(shape.polygons) > 1:
            counts["objects of several polygons split"] += 1
            yield from (shape._replace(polygons=(polygon,)) for polygon in shape.polygons)
        else:
            yield shape


def short(value: float) -> str:
    """Formats a number with up to 12 decimals, without trailing zeros."""
    return f"{value:.12f}".rstrip("0").rstrip(".") or "0"


def number(value: float) -> int | float:
    """Converts an integral float to an integer, for JSON."""
    return int(value) if float(value).is_integer() else value
