"""Open Images: boxes, masks and labels of whole images, all of the same images."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Integer

from mtl_jax.data import orientation
from mtl_jax.data.files import ImageFolderIndex
from mtl_jax.data.grey import GreyBits
from mtl_jax.data.images import read_header, read_image, turn_upright
from mtl_jax.data.masks import mask_dtype
from mtl_jax.data.pixel_labels import decode_mask
from mtl_jax.data.sources import open_images_csv as tables
from mtl_jax.data.sources.base import Fields, Reading, Sample, check_split, find_first, warn_once
from mtl_jax.data.sources.open_images_csv import Box
from mtl_jax.data.warp import stretch, warp_nearest
from mtl_jax.errors import UserError

MASK_TOLERANCE = 0.005  # of the image's side, between an object's corners in the tables of boxes and of masks


class OpenImages:
    """Images with labels "detection", "multi_label" (where the split has labels of whole images) and "segmentation".

    What is annotated on the images of the folder {split}/ is kept of the tables, the rest passed over; annotated images
    that are not there are skipped, and their number is logged. An image without any object of `classes` stays if people
    have verified that one of them is absent. Objects that stand for a group are crowds. Boxes without area, and masks
    that belong to no box, are dropped and counted in `dropped` by reason.

    Where the split has labels of whole images, objects were looked for of those classes alone that people have verified
    to be present or absent: boxes and masks say which, in "labelled", unless they are all of every image.

    The mask holds 0 for the background and then `classes`; smaller objects lie over larger ones. An object without a
    file of its mask fills its box, and the log says how many. With more classes than a mask can hold, there is no
    "segmentation".

    Args:
        data_root: the folder of all datasets.
        split: "train" or "val"; tables and folders are named after Open Images' train and validation.
        folder: the dataset's folder below `data_root`.
        classes: names, in the order of their labels; by default all of the dataset.
        annotated_on: boxes and masks of images that EXIF turns are of the "upright" or the "stored" pixels; "auto"
            refuses such images, of which no size decides, as corners are shares.
        grey_bits: of the levels of greyscale images in 16-bit files; 0 takes the fewest of 10, 12, 14 and 16 that hold
            those of all training images.

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
        annotated_on: str = "auto",
        grey_bits: int = 0,
    ) -> None:
        self.grey = GreyBits(grey_bits)
        self._annotated_on = orientation.check(annotated_on)
        base, names = Path(data_root).expanduser() / folder, tables.SPLIT_NAMES[check_split(split)]
        find = functools.partial(find_first, noun="an Open Images dataset", data_root=data_root)
        classes_file = find(tables.places(base, tables.CLASSES))
        self.file = find(tables.places(base, tables.BOXES, split))
        self.folder = find([base / name for name in names])
        self.mask_folder = self.folder.with_name(f"{self.folder.name}-masks")
        table, labels = _class_table(classes_file, classes)
        self.class_names = {"detection": table}
        self.dropped: Counter[str] = Counter()
        self._images = ImageFolderIndex(self.folder)
        self._stems = self._images.names()
        self._missing: set[str] = set()
        self._objects: dict[str, list[Box]] = {}
        self._presences: dict[str, dict[int, bool | None]] = {}
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
        self._is_partly_labelled = bool(presences) and not all(self._labelled(name).all() for name in self._ids)
        self._report()

    def _add_boxes(self, labels: dict[str, int]) -> None:
        for image, box in tables.read_boxes(self.file, labels, self._is_there):
            if box.area == 0:
                self.dropped["degenerate"] += 1
            elif box in self._objects.get(image, ()):
                self.dropped["listed_twice"] += 1
            else:
                self._objects.setdefault(image, []).append(box)

    def _add_presences(self, file: Path, labels: dict[str, int]) -> None:
        for image, label, is_present in tables.read_presences(file, labels, self._is_there):
            image_presences = self._presences.setdefault(image, {})
            image_presences[label] = (
                is_present if image_presences.get(label, is_present) == is_present else None
            )  # rows that contradict each other

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

    def _labelled(self, image: str) -> Bool[np.ndarray, "classes"]:
        """Which classes people have looked for in an image."""
        is_labelled = np.zeros(len(self.class_names["detection"]), bool)
        is_labelled[
            [number for number, is_present in self._presences.get(image, {}).items() if is_present is not None]
        ] = True
        is_labelled[[box.label for box in self._objects.get(image, [])]] = True
        return is_labelled

    def _is_there(self, image: str) -> bool:
        if image not in self._stems:
            self._missing.add(image)
        return image in self._stems

    def _report(self) -> None:
        if not self._ids:
            if self.dropped["degenerate"]:
                raise UserError(
                    f"{self.file}: expected boxes with XMin < XMax and YMin < YMax, found none of "
                    f"{self.dropped.total()}; look whether the columns hold corners, and not sizes"
                )
            raise UserError(
                f"{self.folder}: expected images <ImageID>.jpg of {self.file.name}, found none of the "
                f"{len(self._missing)} that show the classes; put them there, or name other classes"
            )
        if self._missing:
            missing, listed_count = len(self._missing), len(self._missing) + len(self._ids)
            warn_once(f"{self.folder}: {missing} of {listed_count} annotated images are missing and skipped")
        masks = [box.mask is not None for boxes in self._objects.values() for box in boxes]
        if "segmentation" in self.class_names and not all(masks):
            outlined, box_filled = sum(masks), len(masks) - sum(masks)
            warn_once(f"{self.file}: {outlined} objects have a mask, {box_filled} fill their box instead")

    def __len__(self) -> int:
        return len(self._ids)

    def image_origin(self, index: int) -> Path:
        """Returns the image's file."""
        return self._images.find(self._ids[index])

    def __getitem__(self, index: int) -> Sample:
        name = self._ids[index]
        image = read_image(self.image_origin(index), grey_bits=self.grey)
        header = image.header
        stored = header.is_turned and self._convention.decided(self.image_origin(index), "boxes and masks")
        width, height = (header.width, header.height) if stored else header.upright_size
        boxes = self._objects.get(name, [])
        detection = _fields(boxes, (height, width))
        if stored:
            detection["boxes_xyxy"] = orientation.turn_boxes(detection["boxes_xyxy"], header)
        labels: dict[str, Fields] = {"detection": detection}
        if self._is_partly_labelled:
            detection["labelled"] = self._labelled(name)
        if "multi_label" in self.class_names:
            label = np.full(len(self.class_names["multi_label"]), np.nan, np.float32)
            for number, is_present in self._presences.get(name, {}).items():
                label[number] = np.nan if is_present is None else is_present
            labels["multi_label"] = {"label": label}
        if "segmentation" in self.class_names:
            blank = np.zeros((height, width), mask_dtype(len(self.class_names["segmentation"])))
            mask = _paint_masks(blank, boxes, self.mask_folder)
            labels["segmentation"] = {"mask": turn_upright(mask, header.orientation) if stored else mask}
            if self._is_partly_labelled:
                labels["segmentation"]["labelled"] = np.append(True, self._labelled(name))
        return {"image": image.upright, "labels": labels, "id": name}

    @functools.cached_property
    def reading(self) -> Reading:
        """Counts and warnings of reading; looks at the head of every image."""
        boxes = [box for name in self._ids for box in self._objects.get(name, [])]
        presence_values = [is_present for name in self._ids for is_present in self._presences.get(name, {}).values()]
        counts = {
            "images": len(self),
            "images missing": len(self._missing),
            "images turned": self._convention.turned,
            "boxes": len(boxes),
            "crowds among them": sum(box.crowd for box in boxes),
            "boxes with a mask": sum(box.mask is not None for box in boxes),
            **{f"boxes dropped: {reason.replace('_', ' ')}": count for reason, count in self.dropped.items()},
            "labels of whole images": sum(is_present is not None for is_present in presence_values),
            "labels in contradiction": sum(is_present is None for is_present in presence_values),
            "images not searched for every class": self._is_partly_labelled
            and sum(not self._labelled(name).all() for name in self._ids),
        }
        notes, degenerate = [*self._convention.notes], self.dropped["degenerate"]
        if degenerate > len(boxes):
            notes.append(
                f"{self.file}: {degenerate} of {degenerate + len(boxes)} boxes have no area and are dropped: look "
                "whether the columns hold corners, and not sizes."
            )
        return Reading({name: count for name, count in counts.items() if count}, tuple(notes))

    @functools.cached_property
    def _convention(self) -> orientation.Convention:
        return orientation.judge(
            self._headers(), annotated_on=self._annotated_on, noun="boxes and masks", location=self.file
        )

    def _headers(self) -> Iterator[tuple[str, orientation.Header, None]]:
        for index, name in enumerate(self._ids):
            with contextlib.suppress(UserError):  # is reported when the image is read
                yield name, read_header(self.image_origin(index)), None


def _class_table(file: Path, classes: Sequence[str] | None) -> tuple[tuple[str, ...], dict[str, int]]:
    """Returns the names of the classes and the label of each of their machine ids."""
    names = tables.read_classes(file)
    table = tuple(dict.fromkeys(names.values()) if classes is None else classes)
    unknown = [name for name in table if name not in names.values()]
    if unknown:
        raise UserError(
            f"{file}: expected the classes among the file's names, found no {', '.join(map(repr, unknown))}; "
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


def _paint_masks(
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
