"""Table of label formats, and format detection by file content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mtl_jax.data.formats import (
    class_folders,
    class_masks,
    coco,
    csv_table,
    cvat,
    depth,
    label_studio,
    labelme,
    masks,
    open_images,
    via,
    voc,
    yolo,
)
from mtl_jax.data.formats.assemble import assemble
from mtl_jax.data.formats.entries import Annotations
from mtl_jax.data.formats.place import Place
from mtl_jax.data.formats.records import LABELS, Dataset
from mtl_jax.data.formats.writing import Out
from mtl_jax.errors import UserError


class Format(NamedTuple):
    """A label format: its detection, reader and writer."""

    signature: str  # identifying content, for errors
    kinds: tuple[str, ...]  # kinds of label that can be read
    written: tuple[str, ...]  # kinds of label that can be written
    matches: Callable[[Place], bool]
    outlines: str  # object outlines it supports: "runs", "polygons", "" for none; "masks" for mask files
    read_labels: Callable[[Place, str | None], Annotations]
    write: Callable[[Dataset, Out], None]


OBJECTS = ("boxes", "masks")
TAGGED = (*OBJECTS, "tags", "classes")
# In the order of detection: the most specific formats come first. Formats of objects provide tags too: their classes.
FORMATS: dict[str, Format] = {
    "coco": Format(
        "JSON with images, annotations and categories",
        (*OBJECTS, "tags"),
        OBJECTS,
        coco.is_coco,
        "runs",
        coco.read_labels,
        coco.write,
    ),
    "labelme": Format(
        "JSON with shapes and imagePath",
        TAGGED,
        TAGGED,
        labelme.is_labelme,
        "polygons",
        labelme.read_labels,
        labelme.write,
    ),
    "label_studio": Format(
        "JSON tasks with data and annotations",
        (*TAGGED, "values"),
        (*TAGGED, "values"),
        label_studio.is_label_studio,
        "polygons",
        label_studio.read_labels,
        label_studio.write,
    ),
    "via": Format(
        "JSON with filename and regions",
        TAGGED,
        TAGGED,
        via.is_via,
        "polygons",
        via.read_labels,
        via.write,
    ),
    "cvat": Format(
        "XML with <annotations>",
        TAGGED,
        TAGGED,
        cvat.is_cvat,
        "runs",
        cvat.read_labels,
        cvat.write,
    ),
    "voc": Format(
        "XML with <annotation>",
        ("boxes", "tags"),
        ("boxes",),
        voc.is_voc,
        "",
        voc.read_labels,
        voc.write,
    ),
    "yolo": Format(
        "data.yaml or text files of class x y width height",
        (*OBJECTS, "tags"),
        OBJECTS,
        yolo.is_yolo,
        "polygons",
        yolo.read_labels,
        yolo.write,
    ),
    "open_images": Format(
        "CSV with ImageID, LabelName and XMin",
        ("boxes", "tags"),
        ("boxes", "tags"),
        open_images.is_open_images,
        "",
        open_images.read_labels,
        open_images.write,
    ),
    "class_masks": Format(
        "masks of two values, a file for each class",
        ("masks",),
        ("masks",),
        class_masks.is_class_masks,
        "masks",
        class_masks.read_labels,
        class_masks.write,
    ),
    "masks": Format(
        "masks of the images' names",
        ("masks",),
        ("masks",),
        masks.is_masks,
        "masks",
        masks.read_labels,
        masks.write,
    ),
    "depth": Format(
        "depth maps of the images' names",
        ("depth",),
        ("depth",),
        depth.is_depth,
        "",
        depth.read_labels,
        depth.write,
    ),
    "class_folders": Format(
        "images in a folder for each class",
        ("classes",),
        ("classes",),
        class_folders.is_class_folders,
        "",
        class_folders.read_labels,
        class_folders.write,
    ),
    "csv": Format(
        "CSV with a column of images",
        ("boxes", "classes", "tags", "values"),
        ("boxes", "classes", "tags", "values"),
        csv_table.is_csv,
        "",
        csv_table.read_labels,
        csv_table.write,
    ),
}


def detect(path: str | Path, *, kind: str | None = None) -> str:
    """Detects the format of a folder or file from its content.

    Args:
        path: the folder or file; "table.csv:column" names a column.
        kind: requested kind of label, a key of `LABELS`: only formats that support it are considered.

    Raises:
        UserError: no format matches.
    """
    return _detect(Place(path), _check_kind(kind))


def read(
    path: str | Path,
    *,
    kind: str | None = None,
    format: str = "auto",
    images: str | Path | None = None,
    annotated_on: str = "auto",
) -> Dataset:
    """Reads labels in any format.

    Args:
        path: the folder or file; "table.csv:column" names a column.
        kind: requested kind of label, a key of `LABELS`; None reads all.
        format: a key of `FORMATS`, or "auto" for detection by content.
        images: folder of the images, if it is separate from the labels.
        annotated_on: whether labels of images with an EXIF orientation refer to "upright" or "stored" pixels; "auto"
            decides by the sizes in the files.

    Raises:
        UserError: no format matches, a file is malformed, or images are missing.
    """
    place = Place(path, images=images)
    if format != "auto" and format not in FORMATS:
        raise UserError(f"expected a format among auto, {', '.join(FORMATS)}, found {format!r}; choose one of them")
    name = _detect(place, _check_kind(kind)) if format == "auto" else format
    annotations = FORMATS[name].read_labels(place, kind)
    if not annotations.entries:
        raise UserError(f"{place.path}: expected labels in the format {name}, found none; correct the path")
    dataset = assemble(name, place, annotations, kind=kind, annotated_on=annotated_on)
    if kind is not None and LABELS[kind] not in dataset.classes:
        raise UserError(f"{place.path}: expected {kind}, found {', '.join(dataset.kinds)} (format {name})")
    return dataset


def _check_kind(kind: str | None) -> str | None:
    if kind is not None and kind not in LABELS:
        raise UserError(f"expected a kind of label among {', '.join(LABELS)}, found {kind!r}; choose one of them")
    return kind


def _detect(place: Place, kind: str | None) -> str:
    candidates = {name: candidate for name, candidate in FORMATS.items() if kind is None or kind in candidate.kinds}
    for name, candidate in candidates.items():
        if candidate.matches(place):
            return name
    if place.broken:
        raise place.broken[0]
    descriptions = "; ".join(f"{name}: {candidate.signature}" for name, candidate in candidates.items())
    raise UserError(
        f"{place.path}: expected labels{f' ({kind})' if kind else ''} in a known format, found none among "
        f"{len(place.files)} files; looked for {descriptions}"
    )
