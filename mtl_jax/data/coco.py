"""Boxes in the COCO format: annotations/instances_{split}.json beside the folder of its images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data.base import Fields, Sample, check_split, file_in, find_first, read_json
from mtl_jax.data.images import read_image
from mtl_jax.errors import UserError

FAR_PX = 1e9  # no image is so large: a coordinate beyond is as good as infinite
NUMBER_OR_NAME = (int, str)
# What the entries of the file's lists must have, and of which types.
SECTIONS: dict[str, dict[str, tuple[type, ...]]] = {
    "images": {"id": NUMBER_OR_NAME, "file_name": (str,), "width": (int,), "height": (int,)},
    "annotations": {"image_id": NUMBER_OR_NAME, "category_id": (int,)},
    "categories": {"id": (int,), "name": (str,)},
}


class Box(NamedTuple):
    """One annotated object, clipped to its image."""

    xyxy: tuple[float, float, float, float]
    label: int
    crowd: bool
    area: float  # px², of the object's outline where the file gives it


class CocoDetection:
    """Images with boxes; labels "detection", and "multi_label": which classes an image shows, crowds included.

    Images without objects stay, with zero boxes.

    Boxes partly outside their image are clipped. Degenerate ones and those wholly outside are dropped and
    counted in `dropped_boxes` by reason. Category ids are sparse; a label is the index in `classes`.

    Args:
        data_root: the folder of all datasets.
        split: "train" or "val": annotations/instances_{split}.json with {split}/, or else
            instances_{split}2017.json with {split}2017/.
        folder: the dataset's folder below `data_root`.
        classes: category names, in the order of their labels; by default the file's own, ordered by id.
        other_categories: what an annotation of a category outside `classes` is: an "error", or "ignore"d and
            counted.
        images_with: category names; only images that show one of them are kept. Empty keeps all.
        images_without: category names; images that show one of them are left out.

    Raises:
        UserError: no dataset there, an annotation that names no known category or image, or no image left.

    References:
        Lin, Maire, Belongie et al., "Microsoft COCO: Common Objects in Context", 2014.
    """

    def __init__(
        self,
        *,
        data_root: str | Path,
        split: str,
        folder: str = "mini-coco-det",
        classes: Sequence[str] | None = None,
        other_categories: str = "error",
        images_with: Sequence[str] = (),
        images_without: Sequence[str] = (),
    ) -> None:
        check_split(split)
        if other_categories not in ("error", "ignore"):
            raise UserError(f"expected other_categories 'error' or 'ignore', found {other_categories!r}")
        base = Path(data_root).expanduser() / folder
        self.file = find_first(
            [base / "annotations" / f"instances_{name}.json" for name in (split, f"{split}2017")],
            what="a COCO dataset",
            data_root=data_root,
        )
        self.image_folder = base / self.file.stem.removeprefix("instances_")
        content = read(self.file)
        names = {category["id"]: category["name"] for category in content["categories"]}
        table = tuple(dict.fromkeys(names[number] for number in sorted(names)) if classes is None else classes)
        _check_table((*table, *images_with, *images_without), names, self.file)
        self.class_names = {"detection": table, "multi_label": table}
        self.dropped_boxes: Counter[str] = Counter()
        self._images: list[Mapping[str, Any]] = content["images"]
        self._boxes: dict[int | str, list[Box]] = {image["id"]: [] for image in self._images}
        labels = {number: table.index(name) if name in table else None for number, name in names.items()}
        sizes = {image["id"]: (image["width"], image["height"]) for image in self._images}
        for annotation in content["annotations"]:
            self._add(annotation, labels, names, sizes, other_categories)
        shown: dict[int | str, set[str]] = {number: set() for number in sizes}
        for annotation in content["annotations"]:
            shown[annotation["image_id"]].add(names[annotation["category_id"]])
        self._images = [
            image
            for image in self._images
            if (not images_with or shown[image["id"]] & set(images_with))
            and not shown[image["id"]] & set(images_without)
        ]
        if not self._images:
            found = f"images with {tuple(images_with)}, without {tuple(images_without)}"
            raise UserError(f"{self.file}: expected {found}, found none: choose other categories")

    def _add(
        self,
        annotation: Mapping[str, Any],
        labels: Mapping[int, int | None],
        names: Mapping[int, str],
        sizes: Mapping[int | str, tuple[int, int]],
        other_categories: str,
    ) -> None:
        where = f"{self.file}: annotation {annotation.get('id')}"
        category, image = annotation["category_id"], annotation["image_id"]
        if category not in labels:
            raise UserError(f"{where}: expected a category of the file, found id {category}: mend the file")
        if image not in sizes:
            raise UserError(f"{where}: expected an image of the file, found id {image}: mend the file")
        label = labels[category]
        if label is None:
            if other_categories == "error":
                raise UserError(
                    f"{where}: expected one of classes, found category {names[category]!r}: add it, or set "
                    "other_categories='ignore'"
                )
            self.dropped_boxes["other_category"] += 1
            return
        xyxy = _clipped(annotation.get("bbox"), sizes[image], where)
        if isinstance(xyxy, str):
            self.dropped_boxes[xyxy] += 1
            return
        area = annotation.get("area", (xyxy[2] - xyxy[0]) * (xyxy[3] - xyxy[1]))
        if type(area) not in (int, float) or not 0 <= area < FAR_PX**2:
            raise UserError(f"{where}: expected an area in px², found {area!r}: mend the file")
        crowd = annotation.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise UserError(f"{where}: expected iscrowd 0 or 1, found {crowd!r}: mend the file")
        self._boxes[image].append(Box(xyxy, label, bool(crowd), float(area)))

    def __len__(self) -> int:
        return len(self._images)

    def image_origin(self, index: int) -> Path:
        """Returns the image's file."""
        return file_in(self.image_folder, self._images[index]["file_name"])

    def __getitem__(self, index: int) -> Sample:
        image = self._images[index]
        pixels = _pixels_as_annotated(self.image_origin(index), image)
        boxes = _fields(self._boxes[image["id"]])
        shown = np.isin(np.arange(len(self.class_names["multi_label"])), boxes["label"]).astype(np.float32)
        return {
            "image": pixels,
            "labels": {"detection": boxes, "multi_label": {"label": shown}},
            "id": image["file_name"],
        }


def read(file: Path) -> dict[str, Any]:
    """Returns the content of an annotation file, whose lists have what `SECTIONS` says.

    Raises:
        UserError: it cannot be read, or lacks something.
    """
    content = read_json(file)
    for key, needed in SECTIONS.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{file}: expected a COCO file with a list {key!r}, found none: check the file")
        for entry in content[key]:
            missing = [name for name in needed if not isinstance(entry, dict) or name not in entry]
            if missing:
                raise UserError(f"{file}: expected {missing} in each of {key!r}, found {entry}: mend the file")
            wrong = [name for name, kinds in needed.items() if type(entry[name]) not in kinds]
            if wrong:
                raise UserError(
                    f"{file}: expected numbers and names in {key!r}, found {wrong} in {entry}: mend the file"
                )
        ids = Counter(entry["id"] for entry in content[key] if "id" in needed)
        twice = [number for number, count in ids.items() if count > 1]
        if twice:
            raise UserError(f"{file}: expected every id of {key!r} once, found {twice[0]!r} more often: mend the file")
    if not content["images"]:
        raise UserError(f"{file}: expected images, found an empty list: check the file")
    return content


def _check_table(table: Sequence[str], names: Mapping[int, str], file: Path) -> None:
    unknown = [name for name in table if name not in names.values()]
    if unknown:
        raise UserError(
            f"{file}: expected the classes among the file's categories, found no {unknown}: the file has "
            f"{', '.join(names.values())}"
        )


def _clipped(bbox: Any, size: tuple[int, int], where: str) -> tuple[float, float, float, float] | str:
    """Returns the corners inside the image, or the reason to drop the box."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(type(value) in (int, float) for value in bbox):
        raise UserError(f"{where}: expected bbox [x, y, width, height], found {bbox}: mend the file")
    if not all(abs(value) < FAR_PX for value in bbox) or min(bbox[2:]) <= 0:  # NaN is not below it either
        return "degenerate"
    x, y, width, height = map(float, bbox)
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + width, float(size[0])), min(y + height, float(size[1]))
    if right <= left or bottom <= top:
        return "outside"
    return left, top, right, bottom


def _pixels_as_annotated(file: Path, image: Mapping[str, Any]) -> np.ndarray:
    """Boxes count in the pixels that the annotator saw: upright, or as stored where only that size fits."""
    decoded = read_image(file)
    size = (image["height"], image["width"])
    if decoded.upright.shape[:2] == size:
        return decoded.upright
    if decoded.stored.shape[:2] == size:
        return decoded.stored
    height, width = decoded.upright.shape[:2]
    raise UserError(
        f"{file}: expected {image['width']} x {image['height']} px as annotated, found {width} x {height}: "
        "use the image that the annotations were made on"
    )


def _fields(boxes: Sequence[Box]) -> Fields:
    return {
        "boxes_xyxy": np.array([box.xyxy for box in boxes], np.float32).reshape(-1, 4),
        "label": np.array([box.label for box in boxes], np.int32),
        "crowd": np.array([box.crowd for box in boxes], bool),
        "area": np.array([box.area for box in boxes], np.float32),
    }
