"""Open Images: boxes, masks and labels of whole images, all of the same images."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from mtl_jax.data import open_images_csv as tables
from mtl_jax.data.base import Fields, Sample, check_split, find_first, warn_once
from mtl_jax.data.images import decode_image, decode_mask
from mtl_jax.data.masks import mask_dtype
from mtl_jax.data.open_images_csv import Box
from mtl_jax.data.warp import stretch, warp_nearest
from mtl_jax.errors import UserError

MASK_TOLERANCE = 0.005  # of the image's side, between an object's corners in the tables of boxes and of masks


class OpenImages:
    """Images with labels "detection", "multi_label" (where the split has labels of whole images) and "segmentation".

    What is annotated on the images of the folder {split}/ is kept of the tables, the rest passed over; annotated images
    that are not there are skipped, and their number is logged. An image without any object of `classes` stays if people
    have verified that one of them is absent. Objects that stand for a group are crowds. Boxes without area, and masks
    that belong to no box, are dropped and counted in `dropped` by reason.

    The mask holds 0 for the background and then `classes`; smaller objects lie over larger ones. An object without a
    file of its mask fills its box, and the log says how many. With more classes than a mask can hold, there is no
    "segmentation".

    Args:
        data_root: the folder of all datasets.
        split: "train" or "val"; tables and folders are named after Open Images' train and validation.
        folder: the dataset's folder below `data_root`.
        classes: names, in the order of their labels; by default all of the dataset.

    Raises:
        UserError: no dataset there, a broken table, an unknown class, or no annotated image.

    References:
        Kuznetsova, Rom, Alldrin et al., "The Open Images Dataset V4", 2020.
        Benenson, Popov, Ferrari, "Large-scale interactive object segmentation with human annotators" (the masks), 2019.
    """

    def __init__(
        self,
        *,
        data_root: str | Path,
        split: str,
        folder: str = "open-images-mini",
        classes: Sequence[str] | None = None,
    ) -> None:
        base, names = Path(data_root).expanduser() / folder, tables.SPLIT_NAMES[check_split(split)]
        find = functools.partial(find_first, what="an Open Images dataset", data_root=data_root)
        classes_file = find(tables.places(base, tables.CLASSES))
        self.file = find(tables.places(base, tables.BOXES, split))
        self.folder = find([base / name for name in names])
        self.mask_folder = self.folder.with_name(f"{self.folder.name}-masks")
        table, labels = _class_table(classes_file, classes)
        self.class_names = {"detection": table}
        self.dropped: Counter[str] = Counter()
        self._stems = {name.removesuffix(".jpg") for name in _names_in(self.folder) if name.endswith(".jpg")}
        self._missing: set[str] = set()
        self._objects: dict[str, list[Box]] = {}
        self._presences: dict[str, dict[int, bool]] = {}
        self._add_boxes(labels)
        presences = _first(tables.places(base, tables.PRESENCES, split))
        if presences:
            self.class_names["multi_label"] = table
            self._add_presences(presences, labels)
        if len(table) < np.iinfo(np.uint16).max:
            self.class_names["segmentation"] = ("background", *table)
            masks = _first(tables.places(base, tables.MASKS, split))
            if masks and self.mask_folder.is_dir():
                self._add_masks(masks, labels)
        self._ids = sorted(self._objects.keys() | self._presences.keys())
        self._report()

    def _add_boxes(self, labels: dict[str, int]) -> None:
        for image, box in tables.read_boxes(self.file, labels, self._is_there):
            if box.area > 0:
                self._objects.setdefault(image, []).append(box)
            else:
                self.dropped["degenerate"] += 1

    def _add_presences(self, file: Path, labels: dict[str, int]) -> None:
        for image, label, present in tables.read_presences(file, labels, self._is_there):
            self._presences.setdefault(image, {})[label] = present

    def _add_masks(self, file: Path, labels: dict[str, int]) -> None:
        files = _names_in(self.mask_folder)
        for image, masked in tables.read_masks(file, labels, self._is_there):
            if masked.mask not in files:
                continue
            boxes = self._objects.get(image, [])
            index = _nearest(boxes, masked)
            if index is None:
                self.dropped["mask_without_box"] += 1
            else:
                boxes[index] = boxes[index]._replace(mask=masked.mask)

    def _is_there(self, image: str) -> bool:
        if image not in self._stems:
            self._missing.add(image)
        return image in self._stems

    def _report(self) -> None:
        if not self._ids:
            raise UserError(
                f"{self.folder}: expected images <ImageID>.jpg of {self.file.name}, found none of the "
                f"{len(self._missing)} that show the classes: put them there, or name other classes"
            )
        if self._missing:
            missing, listed = len(self._missing), len(self._missing) + len(self._ids)
            warn_once(f"{self.folder}: {missing} of {listed} annotated images are missing and skipped")
        masks = [box.mask is not None for boxes in self._objects.values() for box in boxes]
        if "segmentation" in self.class_names and not all(masks):
            drawn, filled = sum(masks), len(masks) - sum(masks)
            warn_once(f"{self.file}: {drawn} objects have a mask, {filled} fill their box instead")

    def __len__(self) -> int:
        return len(self._ids)

    def image_origin(self, index: int) -> Path:
        """Returns the image's file."""
        return self.folder / f"{self._ids[index]}.jpg"

    def __getitem__(self, index: int) -> Sample:
        name = self._ids[index]
        image = decode_image(self.image_origin(index))
        size = (image.shape[0], image.shape[1])
        boxes = self._objects.get(name, [])
        labels: dict[str, Fields] = {"detection": _fields(boxes, size)}
        if "multi_label" in self.class_names:
            label = np.full(len(self.class_names["multi_label"]), np.nan, np.float32)
            for number, present in self._presences.get(name, {}).items():
                label[number] = present
            labels["multi_label"] = {"label": label}
        if "segmentation" in self.class_names:
            mask = np.zeros(size, mask_dtype(len(self.class_names["segmentation"])))
            labels["segmentation"] = {"mask": _painted(mask, boxes, self.mask_folder)}
        return {"image": image, "labels": labels, "id": name}


def _class_table(file: Path, classes: Sequence[str] | None) -> tuple[tuple[str, ...], dict[str, int]]:
    """Returns the names of the classes and the label of each of their machine ids."""
    names = tables.read_classes(file)
    table = tuple(dict.fromkeys(names.values()) if classes is None else classes)
    unknown = [name for name in table if name not in names.values()]
    if unknown:
        raise UserError(
            f"{file}: expected the classes among the file's names, found no {', '.join(map(repr, unknown))}: "
            "write them as the file does"
        )
    labels = {name: label for label, name in enumerate(table)}
    return table, {mid: labels[name] for mid, name in names.items() if name in labels}


def _names_in(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def _first(paths: Sequence[Path]) -> Path | None:
    return next((path for path in paths if path.exists()), None)


def _nearest(boxes: Sequence[Box], masked: Box) -> int | None:
    """Which box a mask belongs to: the tables share no number of the object, only its corners."""

    def distance(index: int) -> float:
        return max(abs(a - b) for a, b in zip(boxes[index].corners, masked.corners, strict=True))

    open_ones = [index for index, box in enumerate(boxes) if box.label == masked.label and box.mask is None]
    nearest = min(open_ones, key=distance, default=None)
    return nearest if nearest is not None and distance(nearest) <= MASK_TOLERANCE else None


def _fields(boxes: Sequence[Box], size: tuple[int, int]) -> Fields:
    height, width = size
    shares = np.array([box.corners for box in boxes], np.float32).reshape(-1, 4)
    return {
        "boxes_xyxy": shares * np.array([[width, height, width, height]], np.float32),
        "label": np.array([box.label for box in boxes], np.int32),
        "crowd": np.array([box.crowd for box in boxes], bool),
        "area": np.array([box.area * height * width for box in boxes], np.float32),
    }


def _painted(
    mask: Integer[np.ndarray, "height width"], boxes: Sequence[Box], mask_folder: Path
) -> Integer[np.ndarray, "height width"]:
    """Draws the objects over each other, the largest first."""
    height, width = size = (mask.shape[0], mask.shape[1])
    for box in sorted(boxes, key=lambda box: box.area, reverse=True):
        if box.mask is None:
            left, top, right, bottom = box.corners
            shape = (
                slice(round(top * height), round(bottom * height)),
                slice(round(left * width), round(right * width)),
            )
        else:
            outline = decode_mask(mask_folder / box.mask, class_count=0)
            shape = warp_nearest(outline, stretch(*outline.shape, size=size), size=size, missing=0) > 0
        mask[shape] = box.label + 1
    return mask
