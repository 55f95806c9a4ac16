"""Writes one small dataset in every label format, each as other programs write it, by plain text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee")


class Object(NamedTuple):
    """A polygon with whole corners, whose box is around them."""

    label: str
    corners: tuple[tuple[int, int], ...]

    @property
    def box(self) -> tuple[int, int, int, int]:
        xs, ys = zip(*self.corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)


def rectangle(label: str, left: int, top: int, right: int, bottom: int) -> Object:
    return Object(label, ((left, top), (right, top), (right, bottom), (left, bottom)))


class Picture(NamedTuple):
    name: str
    size: tuple[int, int]  # width, height
    split: str
    objects: tuple[Object, ...]
    label: str  # of the whole image
    value: float

    @property
    def mask(self) -> np.ndarray:
        """Class of each pixel: no object lies over another, and every side runs along an axis."""
        mask = np.zeros(self.size[::-1], np.uint8)
        for each in self.objects:
            for y in range(mask.shape[0]):
                for x in range(mask.shape[1]):
                    if _inside(each.corners, x + 0.5, y + 0.5):
                        mask[y, x] = CLASSES.index(each.label) + 1
        return mask


def _inside(corners: Sequence[tuple[int, int]], x: float, y: float) -> bool:
    edges = zip(corners, (*corners[1:], corners[0]), strict=True)
    return sum(x0 == x1 and min(y0, y1) < y < max(y0, y1) and x0 > x for (x0, y0), (x1, y1) in edges) % 2 == 1


L_SHAPE = Object("bee", ((2, 3), (9, 3), (9, 6), (5, 6), (5, 11), (2, 11)))
PICTURES = (
    Picture("Käfer 1.png", (32, 24), "train", (rectangle("ant", 12, 5, 31, 20), L_SHAPE), "ant", 1),
    Picture("b c.png", (24, 30), "train", (rectangle("bee", 0, 0, 24, 7), rectangle("ant", 3, 10, 8, 29)), "bee", 2.5),
    Picture("007.png", (30, 30), "train", (), "ant", -3),
    Picture("x.y.png", (40, 20), "val", (rectangle("bee", 11, 2, 39, 19),), "bee", 4),
    Picture("z.png", (21, 33), "val", (rectangle("ant", 1, 12, 20, 30), L_SHAPE._replace(label="ant")), "ant", 0),
)


def put(file: Path, picture: Picture) -> Path:
    """Writes the pixels of a picture, which its name decides."""
    file.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(list(picture.name.encode()))
    Image.fromarray(numbers.integers(0, 256, (*picture.size[::-1], 3), np.uint8)).save(file)
    return file


def text(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")


def coco(root: Path, *, outlines: str = "") -> None:
    for split in ("train", "val"):
        images, annotations = [], []
        for number, picture in enumerate(each for each in PICTURES if each.split == split):
            put(root / split / picture.name, picture)
            width, height = picture.size
            images.append({"id": number + 5, "file_name": picture.name, "width": width, "height": height})
            for each in picture.objects:
                left, top, right, bottom = each.box
                annotation = {"id": len(annotations), "image_id": number + 5, "iscrowd": 0}
                annotation |= {"category_id": 3 + 4 * CLASSES.index(each.label)}
                annotation |= {"bbox": [left, top, right - left, bottom - top]}
                if outlines == "polygons":
                    annotation["segmentation"] = [[side for corner in each.corners for side in corner]]
                if outlines == "runs":
                    alone = picture._replace(objects=(each,)).mask > 0
                    annotation["segmentation"] = {"size": [height, width], "counts": runs(alone)}
                annotations.append(annotation)
        categories = [{"id": 3, "name": "ant"}, {"id": 7, "name": "bee"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        text(root / "annotations" / f"instances_{split}.json", json.dumps(content))


def runs(inside: np.ndarray) -> list[int]:
    counts, last = [0], False
    for value in inside.T.ravel().tolist():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return counts


def voc(root: Path) -> None:
    for picture in PICTURES:
        put(root / "JPEGImages" / picture.name, picture)
        width, height = picture.size
        objects = "".join(
            f"<object><name>{each.label}</name><difficult>0</difficult><bndbox><xmin>{left}</xmin><ymin>{top}</ymin>"
            f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
            for each in picture.objects
            for left, top, right, bottom in [each.box]
        )
        text(
            root / "Annotations" / f"{picture.name.removesuffix('.png')}.xml",
            f'<?xml version="1.0" encoding="utf-8"?><annotation><filename>{picture.name}</filename><size><width>{width}'
            f"</width><height>{height}</height><depth>3</depth></size>{objects}</annotation>",
        )
    for split in ("train", "val"):
        names = [picture.name.removesuffix(".png") for picture in PICTURES if picture.split == split]
        text(root / "ImageSets/Main" / f"{split}.txt", "\n".join(names))


def yolo(root: Path, *, outlines: str = "") -> None:
    for picture in PICTURES:
        put(root / "images" / picture.split / picture.name, picture)
        width, height = picture.size
        lines = []
        for each in picture.objects:
            left, top, right, bottom = each.box
            box = ((left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width)
            numbers = [*box, (bottom - top) / height]
            if outlines:
                numbers = [side for x, y in each.corners for side in (x / width, y / height)]
            lines.append(f"{CLASSES.index(each.label)} " + " ".join(f"{number:.6f}" for number in numbers))
        if lines:
            text(root / "labels" / picture.split / f"{picture.name.removesuffix('.png')}.txt", "\n".join(lines))
    text(root / "data.yaml", "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: ant\n  1: bee\n")


WRITERS: dict[str, Callable[[Path], None]] = {  # of boxes
    "coco": coco,
    "voc": voc,
    "yolo": yolo,
}
OUTLINES: dict[str, Callable[[Path], None]] = {
    "coco": lambda root: coco(root, outlines="polygons"),
    "coco runs": lambda root: coco(root, outlines="runs"),
    "yolo": lambda root: yolo(root, outlines="polygons"),
}
