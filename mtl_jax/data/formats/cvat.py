"""CVAT for images: one XML file with boxes, polygons, masks and tags of all images."""

from __future__ import annotations

from collections import Counter
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from mtl_jax.data.formats import painting
from mtl_jax.data.formats.curves import ellipse, rotate
from mtl_jax.data.formats.entries import Annotations, Entry, RawShape, split_of
from mtl_jax.data.formats.parsing import coordinate, integer, read_xml, text
from mtl_jax.data.formats.place import Place
from mtl_jax.data.formats.records import Dataset, Polygon, Record, Runs, tags_of
from mtl_jax.data.formats.writing import Out, by_split, number, object_names
from mtl_jax.errors import UserError

SIDES = ("xtl", "ytl", "xbr", "ybr")
NOT_READ = ("polyline", "points", "cuboid", "skeleton")


def is_cvat(place: Place) -> bool:
    """Returns whether an XML file lists annotated images."""
    return any(tree.tag == "annotations" and tree.find("image") is not None for tree in place.first_xml())


def read_labels(place: Place, kind: str | None) -> Annotations:
    """Reads all files; classes are in the order of the project's labels.

    Raises:
        UserError: a file is broken; names it, the image and the object.
    """
    del kind
    counts: Counter[str] = Counter()
    entries: list[Entry] = []
    labels: dict[str, str] = {}
    for file in place.by_suffix(".xml"):
        tree = read_xml(file)
        if tree.tag != "annotations":
            continue
        counts["tracks of videos, not read"] += len(tree.findall("track"))
        for label in tree.findall("meta/*/labels/label"):
            labels.setdefault(text(label.findtext("name"), f"{file}: label"), (label.findtext("type") or "any").strip())
        for element in tree.findall("image"):
            location = f"{file}: image {element.get('name')!r}"
            entries.append(_entry(element, location, split_of(element.get("subset") or "", file.parent.name), counts))
            entries[-1].near = file.parent
    tags = {tag for entry in entries for tag in entry.tags or ()}
    shape_labels = {shape.label for entry in entries for shape in entry.shapes or ()}
    is_tag = {name: kind == "tag" or (name in tags and name not in shape_labels) for name, kind in labels.items()}
    if tags and not shape_labels:  # tags only
        for entry in entries:
            entry.shapes = None
    names = [name for name in labels if not is_tag[name]]
    tag_names = [name for name, kind in labels.items() if kind == "tag" or name in tags]
    return Annotations(entries, names=names, tag_names=tag_names or None, counts=counts)


def _entry(element: Element, location: str, split: str, counts: Counter[str]) -> Entry:
    width, height = (integer(element.get(side), f"{location}: {side}", least=1) for side in ("width", "height"))
    shapes = []
    for index, child in enumerate(element, 1):
        place = f"{location}, {child.tag} {index}"
        if child.tag in _SHAPES:
            shapes.append(_SHAPES[child.tag](child, text(child.get("label"), place), (width, height), place))
        elif child.tag in NOT_READ:
            counts[f"objects not read: {child.tag}"] += 1
    tags = {text(tag.get("label"), f"{location}, tag"): True for tag in element.findall("tag")}
    name = text(element.get("name"), location)
    return Entry(name, location, None, (width, height), split=split, shapes=shapes, tags=tags or None)


def _box(element: Element, label: str, size: tuple[int, int], location: str) -> RawShape:
    del size
    x0, y0, x1, y1 = (coordinate(element.get(side), f"{location}: {side}") for side in SIDES)
    angle = coordinate(element.get("rotation") or 0, location)
    if angle:
        return RawShape(label, polygons=(rotate(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), angle),))
    return RawShape(label, (x0, y0, x1, y1))


def _polygon(element: Element, label: str, size: tuple[int, int], location: str) -> RawShape:
    del size
    return RawShape(label, polygons=(_points(element.get("points") or "", location),))


def _points(numbers_text: str, location: str) -> Polygon:
    pairs = [pair.split(",") for pair in numbers_text.split(";") if pair.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise UserError(f"{location}: expected points as x,y;x,y;…, found {numbers_text[:40]!r}; correct the file")
    return tuple((coordinate(x, location), coordinate(y, location)) for x, y in pairs)


def _ellipse(element: Element, label: str, size: tuple[int, int], location: str) -> RawShape:
    del size
    x, y, rx, ry = (coordinate(element.get(name), f"{location}: {name}") for name in ("cx", "cy", "rx", "ry"))
    return RawShape(label, polygons=(ellipse(x, y, rx, ry, coordinate(element.get("rotation") or 0, location)),))


def _mask(element: Element, label: str, size: tuple[int, int], location: str) -> RawShape:
    """Decodes row-wise run lengths of the image section inside a box."""
    left, top, width, height = (
        integer(element.get(name), f"{location}: {name}") for name in ("left", "top", "width", "height")
    )
    if left + width > size[0] or top + height > size[1]:
        raise UserError(f"{location}: expected a mask inside of {size[0]} x {size[1]} px, found one that leaves it")
    counts = [integer(count, f"{location}: rle") for count in (element.get("rle") or "").split(",")]
    rows_first = painting.check_runs(counts, (height, width), location)
    pixels = np.zeros((size[1], size[0]), bool)
    pixels[top : top + height, left : left + width] = painting.pixels_of(rows_first).T
    return RawShape(label, runs=painting.runs_of(pixels))


_SHAPES = {"box": _box, "polygon": _polygon, "ellipse": _ellipse, "mask": _mask}


def write(dataset: Dataset, out: Out) -> None:
    """Writes annotations.xml and images/{split}; crowds are left out."""
    tree = Element("annotations")
    ElementTree.SubElement(tree, "version").text = "1.1"
    labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(tree, "meta"), "task"), "labels")
    tag_names = dataset.classes.get("multi_label", ()) if any(record.tags for record in dataset.records) else ()
    for name in dict.fromkeys((*object_names(dataset), *tag_names)):
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = name
        ElementTree.SubElement(label, "type").text = "any" if name in object_names(dataset) else "tag"
    index = 0
    for split, records in by_split(dataset):
        for record in records:
            file = out.put_image(record, f"images/{split}")
            width, height = map(str, record.size)
            name = file.relative_to(out.folder).as_posix()
            attributes = {"id": str(index), "name": name, "width": width, "height": height}
            image = ElementTree.SubElement(tree, "image", attributes | ({"subset": split} if split else {}))
            _write_objects(image, record, out.counts)
            index += 1
    ElementTree.indent(tree)
    ElementTree.ElementTree(tree).write(out.file("annotations.xml"), encoding="utf-8", xml_declaration=True)


def _write_objects(image: Element, record: Record, counts: Counter[str]) -> None:
    for shape in record.shapes or ():
        if shape.crowd:
            counts["crowds left out"] += 1
        elif shape.runs is not None:
            ElementTree.SubElement(image, "mask", {"label": shape.label} | _rle(shape.runs))
        elif shape.polygons:
            counts["objects of several polygons split"] += len(shape.polygons) > 1
            for polygon in shape.polygons:
                points = ";".join(f"{number(x)},{number(y)}" for x, y in polygon)
                ElementTree.SubElement(image, "polygon", {"label": shape.label, "points": points})
        else:
            sides = {side: str(number(value)) for side, value in zip(SIDES, shape.xyxy, strict=True)}
            ElementTree.SubElement(image, "box", {"label": shape.label} | sides)
    for tag, is_true in (tags_of(record) or {}).items() if record.tags else ():
        if is_true:
            ElementTree.SubElement(image, "tag", {"label": tag})


def _rle(runs: Runs) -> dict[str, str]:
    pixels = painting.pixels_of(runs)
    left, top, right, bottom = map(int, painting.bounds(pixels) or (0, 0, 1, 1))
    rows_first = painting.runs_of(pixels[top:bottom, left:right].T)
    box = {"left": left, "top": top, "width": right - left, "height": bottom - top}
    return {"rle": ", ".join(map(str, rows_first.counts))} | {name: str(value) for name, value in box.items()}
