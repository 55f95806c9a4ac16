"""PASCAL VOC: one XML file of boxes for each image."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from mtl_jax.data.formats.entries import Annotations, Entry, RawShape
from mtl_jax.data.formats.parsing import coordinate, integer, read_xml
from mtl_jax.data.formats.place import Place
from mtl_jax.data.formats.records import Dataset, Record
from mtl_jax.data.formats.writing import Out, by_split, number
from mtl_jax.errors import UserError

CORNERS = ("xmin", "ymin", "xmax", "ymax")
OFFICIAL = "VOC20"  # in the name of the database whose pixel coordinates start at 1


def is_voc(place: Place) -> bool:
    """Returns whether an XML file is the annotation of an image."""
    return any(tree.tag == "annotation" and tree.find("filename") is not None for tree in place.first_xml())


def read_labels(place: Place, kind: str | None) -> Annotations:
    """Reads all files; difficult objects are crowds. Splits come from ImageSets or folders.

    Raises:
        UserError: a file is broken; names it and the object.
    """
    del kind
    counts: Counter[str] = Counter()
    trees = {file: read_xml(file) for file in place.by_suffix(".xml")}
    trees = {file: tree for file, tree in trees.items() if tree.tag == "annotation"}
    entries = [_entry(tree, file, place.split_of(file), counts) for file, tree in trees.items()]
    annotations = Annotations(entries, counts=counts)
    if entries and _counts_from_one(list(trees.values()), entries):
        counts["boxes counted from 1"] = _shift(entries)
        annotations.notes.append(
            f"{place.path}: no box begins at 0 and the files name PASCAL VOC, whose pixels count from 1: all boxes "
            "begin one pixel earlier than written."
        )
    return annotations


def _entry(tree: Element, file: Path, split: str, counts: Counter[str]) -> Entry:
    location = str(file)
    name = (tree.findtext("filename") or "").strip() or file.stem
    size = tuple(integer(tree.findtext(f"size/{side}") or 0, f"{location}: size") for side in ("width", "height"))
    if min(size) == 0:
        counts["files without the image's size"] += 1
    shapes = [
        _raw_shape(element, f"{location}: object {index}", counts)
        for index, element in enumerate(tree.findall("object"), 1)
    ]
    return Entry(
        name, location, file.parent, (size[0], size[1]) if min(size) else None, split, shapes, other_name=file.stem
    )


def _raw_shape(element: Element, location: str, counts: Counter[str]) -> RawShape:
    label, box = (element.findtext("name") or "").strip(), element.find("bndbox")
    if not label or box is None:
        raise UserError(f"{location}: expected a name and a bndbox, found none; correct the file")
    x0, y0, x1, y1 = (coordinate(box.findtext(corner), f"{location}: {corner}") for corner in CORNERS)
    if x1 < x0 or y1 < y0:
        counts["boxes with corners in another order"] += 1
    xyxy = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
    return RawShape(label, xyxy, crowd=(element.findtext("difficult") or "").strip() == "1")


def _counts_from_one(trees: list[Element], entries: list[Entry]) -> bool:
    """Returns whether boxes start at 1 with inclusive ends, as in PASCAL VOC; most programs start at 0."""
    official = any(OFFICIAL in (tree.findtext("source/database") or tree.findtext("folder") or "") for tree in trees)
    starts = [value for entry in entries for raw_shape in entry.shapes or () for value in (raw_shape.xyxy or ())[:2]]
    return official and bool(starts) and min(starts) >= 1


def _shift(entries: list[Entry]) -> int:
    count = 0
    for entry in entries:
        for raw_shape in entry.shapes or ():
            if raw_shape.xyxy is not None:
                x0, y0, x1, y1 = raw_shape.xyxy
                raw_shape.xyxy = (x0 - 1, y0 - 1, x1, y1)
                count += 1
    return count


def write(dataset: Dataset, out: Out) -> None:
    """Writes Annotations, JPEGImages and ImageSets/Main; boxes are corners from 0, and crowds are difficult."""
    for split, records in by_split(dataset):
        stems = []
        for record in records:
            image = out.put_image(record, "JPEGImages")
            stems.append(image.stem)
            tree = ElementTree.ElementTree(_annotation(record, image.name))
            ElementTree.indent(tree)
            tree.write(out.file(f"Annotations/{image.stem}.xml"), encoding="utf-8")
        if split:
            out.file(f"ImageSets/Main/{split}.txt").write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")


def _annotation(record: Record, name: str) -> Element:
    tree = Element("annotation")
    _add(tree, "folder", "JPEGImages")
    _add(tree, "filename", name)
    size = _add(tree, "size")
    for side, value in zip(("width", "height", "depth"), (*record.size, 3), strict=True):
        _add(size, side, value)
    for shape in record.shapes or ():
        element = _add(tree, "object")
        _add(element, "name", shape.label)
        _add(element, "difficult", int(shape.crowd))
        box = _add(element, "bndbox")
        for corner, value in zip(CORNERS, shape.xyxy, strict=True):
            _add(box, corner, number(value))
    return tree


def _add(parent: Element, name: str, value: object = "") -> Element:
    child = ElementTree.SubElement(parent, name)
    child.text = str(value)
    return child
