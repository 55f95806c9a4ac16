"""Protocol of sources of samples: random access to decoded images with labels, and class names."""

from __future__ import annotations

import dataclasses
import json
import logging
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np

from mtl_jax.data import opened
from mtl_jax.errors import UserError

VOID = 255  # of a mask: pixels that nobody labelled; PASCAL VOC's convention
WHOLE_FIELDS = ("labelled",)  # of the whole image, in addition to a label: which classes somebody has looked for
SPLITS = ("train", "val")

log = logging.getLogger(__name__)
_logged_warnings: set[str] = set()  # warnings of this process

Fields = dict[str, np.ndarray]


class Sample(TypedDict):
    """One image with its labels, at original resolution.

    `labels` by the source's own label name: "segmentation" {"mask": u8[h, w], or u16 of more than 255 classes; see
    `missing`}; "detection" {"boxes_xyxy":
    f32[n, 4], "label": i32[n], "crowd": bool[n], "area": f32[n]}, crowd boxes included; "classification"
    {"label": i32[]}; "multi_label" {"label": f32[classes]}, NaN = unknown; a number {"value": f32[]}; "depth" {"depth":
    f32[h, w]} in metres, NaN where missing.
    """

    image: np.ndarray  # u8[height, width, 3] RGB
    labels: dict[str, Fields]
    id: str


def missing(pixels: np.ndarray) -> int | float:
    """The value of a pixel without a label, by the type of its map: NaN of a depth map, 255 of a u8 and 65535 of a u16
    mask, -1 of a mask with signs.
    """
    if pixels.dtype.kind == "f":
        return np.nan
    return int(np.iinfo(pixels.dtype).max) if pixels.dtype.kind == "u" else -1


@dataclasses.dataclass(frozen=True)
class Reading:
    """Counts and warnings of reading a source: merged, changed and dropped entries, and suspicious ones.

    Attributes:
        counts: by name, in the order in which they are reported, such as {"images": 240, "boxes": 793,
            "boxes dropped: degenerate": 2, "files skipped: .txt": 1}.
        notes: warnings, each a whole sentence that names the first example and what to do.
    """

    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


@runtime_checkable
class Source(Protocol):
    """Random access to samples.

    A source may also have an attribute `reading` (see `Reading` and `reading_of`), which may look at every file when it
    is first accessed, a method `image_origin(index)`, the file of an image, and an attribute `labelled_classes`, which
    of a label's classes were looked for in its images, by label name.
    """

    @property
    def class_names(self) -> Mapping[str, tuple[str, ...]]:
        """By label name; an empty tuple where the source has none."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def reading_of(source: object) -> Reading:
    """Returns what a source found on reading, for the caller to report; nothing where it does not say."""
    reading = getattr(source, "reading", None) or Reading()
    _logged_warnings.update(reading.notes)
    return reading


def warn_once(message: str) -> None:
    """Logs a warning once, however often a run opens the dataset, unless `reading_of` gave it to somebody to report."""
    if message not in _logged_warnings:
        _logged_warnings.add(message)
        log.warning(message)


# What counts count, in the plural, with the singular.
_SINGULAR = {
    "images": "image",
    "boxes": "box",
    "crowds": "crowd",
    "files": "file",
    "names": "name",
    "labels": "label",
    "entries": "entry",
    "values": "value",
    "tags": "tag",
    "classes": "class",
    "masks": "mask",
    "objects": "object",
    "polygons": "polygon",
    "shapes": "shape",
    "regions": "region",
    "results": "result",
    "tasks": "task",
    "tables": "table",
}


def counted(count: int, noun: str) -> str:
    """Returns a number and what it counts: "2 images turned", "1 image turned".

    Args:
        count: how many.
        noun: in the plural; the first word of `_SINGULAR` in it follows the number.
    """
    words = noun.split(" ")
    plural = next((word for word in words if word in _SINGULAR), None)
    if count == 1 and plural is not None:
        words[words.index(plural)] = _SINGULAR[plural]
    return f"{count} {' '.join(words)}"


def is_chosen(image_classes: Set[Any], images_with: Iterable[Any], images_without: Iterable[Any]) -> bool:
    """Whether an image is kept by the classes that it shows: one of the first, if any are named, none of the last."""
    included = set(images_with)
    return (not included or bool(image_classes & included)) and not image_classes & set(images_without)


def check_split(split: str) -> str:
    """Returns `split`.

    Raises:
      UserError: it is neither "train" nor "val".
    """
    if split not in SPLITS:
        raise UserError(f"expected split 'train' or 'val', found {split!r}; choose one of them")
    return split


def find_first(candidates: Iterable[Path], *, noun: str, data_root: str | Path | None) -> Path:
    """Returns the first path that exists.

    Args:
      candidates: where the thing may be, in order of preference.
      noun: what is looked for, as the error names it.
      data_root: the folder of all datasets, as the error names it.

    Raises:
      UserError: none exists; says where it looked and how to name another folder.
    """
    paths = list(candidates)
    for path in paths:
        if path.exists():
            return path
    path_list = ", ".join(str(path) for path in paths)
    raise UserError(
        f"expected {noun}, found none at {path_list} (data_root is {data_root}); set --config.data_root=DIR or "
        "the environment variable MTL_JAX_DATA to the folder that holds your datasets, or make them with "
        "scripts/prepare_data.py"
    )


def file_in(folder: Path, name: str) -> Path:
    """Returns the place of a file that a dataset's list names.

    Raises:
      UserError: the name leads out of the folder.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(
            f"{folder}: expected names of files inside, found {name!r}, which leads outside; correct the list"
        )
    return folder / path


def read_bytes(path: Path, *, noun: str) -> bytes:
    """Reads a file; a device or a pipe, which might never end, is none.

    Args:
      path: the file.
      noun: it is expected to be, as the error names it.

    Raises:
      UserError: it is not there, is not a file or may not be read.
    """
    try:
        status = path.stat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
    except (OSError, ValueError) as error:  # ValueError: a name that no path can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: expected {noun}, found {reason}; correct the path") from error
    if content is None:
        raise UserError(f"{path}: expected {noun}, found a folder or device; correct the path")
    opened.note(path, status, content)
    return content


def read_text(path: Path) -> str:
    """Reads a text file, in UTF-8.

    Raises:
      UserError: it cannot be read, or holds something else.
    """
    try:
        return read_bytes(path, noun="a text file").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected text in UTF-8, found {error}; replace it by a complete copy") from error


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: it cannot be read or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected a JSON file, found {error}; replace it by a complete copy") from error


class Subset:
    """Some examples of a source."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source = source
        self.indices = indices
        self.class_names = source.class_names
        self.labelled_classes: Mapping[str, tuple[str, ...]] = getattr(source, "labelled_classes", {})
        self.embedded: bool = getattr(source, "embedded", False)
        self.grey: Callable[[], int] | None = getattr(source, "grey", None)
        origin = getattr(source, "image_origin", None)
        if origin is not None:  # else it has none either
            self.image_origin = lambda index: origin(indices[index])

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def reading(self) -> Reading:
        """Counts and warnings of reading the whole source."""
        return reading_of(self.source)

    def __getitem__(self, index: int) -> Sample:
        return self.source[self.indices[index]]
