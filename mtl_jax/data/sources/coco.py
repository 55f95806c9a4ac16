"""Boxes in the COCO format: annotations/instances_{split}.json next to the folder of its images."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.data import orientation
from mtl_jax.data.grey import GreyBits
from mtl_jax.data.images import Decoded, read_header, read_image
from mtl_jax.data.sources import coco_boxes, coco_file
from mtl_jax.data.sources.base import (
    SPLITS,
    Reading,
    Sample,
    check_split,
    counted,
    file_in,
    find_first,
    is_chosen,
    warn_once,
)
from mtl_jax.errors import UserError


class CocoDetection:
    """Images with boxes; labels "detection", and "multi_label": which classes an image shows, crowds included.

    Images without objects stay, with zero boxes. A file that has several entries is one image with the boxes of all.

    Boxes partly outside their image are clipped. Degenerate ones, those wholly outside and equal ones of an image are
    dropped and counted in `dropped_boxes` by reason. Category ids are sparse; a label is the index in `classes`.

    Args:
        data_root: the folder of all datasets.
        split: "train" or "val": annotations/instances_{split}.json with {split}/, or else
            instances_{split}2017.json with {split}2017/.
        folder: the dataset's folder below `data_root`.
        classes: category names, in the order of their labels; those that neither split's file has count as not
            labelled. By default those of the training file (of the split's own, where there is none), ordered by id.
            Categories of the two files are the same by name, not by id.
        other_categories: what an annotation of a category outside `classes` is: an "error", or "ignore"d and
            counted.
        images_with: category names; only images that show one of them are kept. Empty keeps all.
        images_without: category names; images that show one of them are left out.
        annotated_on: boxes of images that EXIF turns count in the "upright" or the "stored" pixels where the size in
            the file does not decide; "auto" follows those where it does.
        grey_bits: of the levels of greyscale images in 16-bit files; 0 takes the fewest of 10, 12, 14 and 16 that hold
            those of all training images.

    Raises:
        UserError: no dataset there, an annotation that names no known category or image, no image left, or boxes as
            shares of the image.

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
        annotated_on: str = "auto",
        grey_bits: int = 0,
    ) -> None:
        check_split(split)
        if other_categories not in ("error", "ignore"):
            raise UserError(f"expected other_categories 'error' or 'ignore', found {other_categories!r}")
        self.grey = GreyBits(grey_bits)
        self._annotated_on = orientation.check(annotated_on)
        base = Path(data_root).expanduser() / folder
        self.file = find_first(_places(base, split), noun="a COCO dataset", data_root=data_root)
        self.image_folder = base / self.file.stem.removeprefix("instances_")
        content = coco_file.read(self.file)
        names = coco_file.names_of(content)
        other_files = [
            file
            for other_split in SPLITS
            if other_split != split
            for file in _places(base, other_split)
            if file.exists()
        ][:1]
        table = tuple(_default_table(split, names, other_files) if classes is None else classes)
        category_names = _known_categories(table, (*images_with, *images_without), names, self.file, other_files)
        self.class_names = {"detection": table, "multi_label": table}
        self.labelled_classes = {
            label: tuple(name for name in table if name in category_names) for label in self.class_names
        }
        images = coco_file.images_of(content, self.file)
        self._repeated, self._is_read = images.repeated, False
        self._images, boxes = images.entries, coco_boxes.Boxes(len(images.entries))
        image_categories: list[set[str]] = [set() for _ in self._images]
        for annotation in content["annotations"]:
            number = self._add(annotation, boxes, names, images.number, other_categories)
            image_categories[number].add(names[annotation["category_id"]])
        boxes.check(self.file)
        self._boxes, self.dropped_boxes = boxes, boxes.dropped
        self._selection = [
            number
            for number, of_image in enumerate(image_categories)
            if is_chosen(of_image, images_with, images_without)
        ]
        if not self._selection:
            expected = f"images with {tuple(images_with)}, without {tuple(images_without)}"
            raise UserError(f"{self.file}: expected {expected}, found none; choose other categories")

    def _add(
        self,
        annotation: Mapping[str, Any],
        boxes: coco_boxes.Boxes,
        names: Mapping[coco_file.Id, str],
        numbers: Mapping[coco_file.Id, int],
        other_categories: str,
    ) -> int:
        """Adds an annotation's box, and returns the number of its image."""
        location = f"{self.file}: annotation {annotation.get('id')!r}"
        category, image = annotation["category_id"], annotation["image_id"]
        if category not in names:
            raise UserError(f"{location}: expected a category of the file, found id {category!r}; correct the file")
        if image not in numbers:
            raise UserError(f"{location}: expected an image of the file, found id {image!r}; correct the file")
        number, table = numbers[image], self.class_names["detection"]
        if names[category] in table:
            size = (self._images[number]["width"], self._images[number]["height"])
            boxes.add(annotation, image=number, label=table.index(names[category]), size=size, location=location)
        elif other_categories == "ignore":
            boxes.dropped["other_category"] += 1
        else:
            raise UserError(
                f"{location}: expected one of the classes {', '.join(table)}, found category {names[category]!r}; "
                "add it to the stream's options.classes and to the task's, or set options.other_categories='ignore'"
            )
        return number

    def __len__(self) -> int:
        return len(self._selection)

    def image_origin(self, index: int) -> Path:
        """Returns the image's file."""
        return file_in(self.image_folder, self._images[self._selection[index]]["file_name"])

    def __getitem__(self, index: int) -> Sample:
        entry = self._images[self._selection[index]]
        file = self.image_origin(index)
        image = read_image(file, grey_bits=self.grey)
        detection = coco_boxes.fields(self._boxes.of_image[self._selection[index]])
        if self._counts_as_stored(image, (entry["width"], entry["height"]), file):
            detection["boxes_xyxy"] = orientation.turn_boxes(detection["boxes_xyxy"], image.header)
        present_classes = np.isin(np.arange(len(self.class_names["multi_label"])), detection["label"]).astype(
            np.float32
        )
        return {
            "image": image.upright,
            "labels": {"detection": detection, "multi_label": {"label": present_classes}},
            "id": entry["file_name"],
        }

    @functools.cached_property
    def reading(self) -> Reading:
        """Counts and warnings of reading; looks at the head of every image."""
        self._is_read = True
        counts = {
            "images": len(self),
            "image entries merged": len(self._repeated),
            **self._boxes.counts(self._selection),
        }
        counts["images turned"] = self._convention.turned
        notes = [*self._boxes.notes(self.file), *self._convention.notes]
        if self._repeated:
            image_count = counted(len(self._repeated), "images")
            notes.append(
                f"{self.file} lists {image_count} more than once (first: {self._repeated[0]}): each is one image "
                "with the boxes of all its entries; look whether two exports were joined."
            )
        return Reading({name: count for name, count in counts.items() if count or name == "boxes"}, tuple(notes))

    def _counts_as_stored(self, image: Decoded, annotated: tuple[int, int], file: Path) -> bool:
        """Whether the boxes of an image count in its stored pixels.

        Raises:
            UserError: they are of another size than the image, or nothing decides.
        """
        header = image.header
        if annotated not in (header.upright_size, (header.width, header.height)):
            width, height = header.upright_size
            raise UserError(
                f"{file}: expected {annotated[0]} x {annotated[1]} px as annotated, found {width} x {height}; "
                "use the image that the annotations were made on"
            )
        by_size = orientation.is_stored(header, annotated)
        if by_size is not None or not header.is_turned:
            return bool(by_size)
        return self._convention.decided(file, "boxes")

    @functools.cached_property
    def _convention(self) -> orientation.Convention:
        convention = orientation.judge(self._sizes(), annotated_on=self._annotated_on, noun="boxes", location=self.file)
        for note in () if self._is_read else convention.notes:
            warn_once(note)
        return convention

    def _sizes(self) -> Iterator[tuple[str, orientation.Header, tuple[int, int] | None]]:
        for index, number in enumerate(self._selection):
            entry = self._images[number]
            try:
                header = read_header(self.image_origin(index))
            except UserError:
                continue  # is reported when the image is read
            yield entry["file_name"], header, (entry["width"], entry["height"])


def _places(base: Path, split: str) -> list[Path]:
    return [base / "annotations" / f"instances_{name}.json" for name in (split, f"{split}2017")]


def _default_table(
    split: str, names: Mapping[coco_file.Id, str], other_files: Sequence[Path]
) -> tuple[str, ...] | dict[str, None]:
    """The training file names the classes, so that labels agree between splits."""
    if split == SPLITS[0] or not other_files:
        return dict.fromkeys(names.values())
    return coco_file.read_names(other_files[0])


def _known_categories(
    table: Sequence[str],
    categories: Sequence[str],
    names: Mapping[coco_file.Id, str],
    file: Path,
    other_files: Sequence[Path],
) -> frozenset[str]:
    """The names of all categories; one may be in the other split's file alone: a converter lists those that occur.

    A class of the table that neither file has was not looked for.

    Raises:
        UserError: there is none of the table, or no category that images are chosen by.
    """
    category_names = set(names.values())
    if not category_names.issuperset((*table, *categories)):
        category_names |= {name for other_file in other_files for name in coco_file.read_names(other_file)}
    unknown = [
        name for name in (table if category_names.isdisjoint(table) else categories) if name not in category_names
    ]
    if unknown:
        raise UserError(
            f"{file}: expected the classes among the file's categories, found no {unknown}; the file has "
            f"{', '.join(names.values())}"
        )
    return frozenset(category_names)
