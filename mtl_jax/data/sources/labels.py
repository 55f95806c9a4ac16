"""Labels in whatever format they come: see `mtl_jax.data.formats`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.data import formats
from mtl_jax.data.formats import naming, pixels, splitting
from mtl_jax.data.formats.records import BACKGROUND, Dataset, Record, Shape
from mtl_jax.data.grey import GreyBits
from mtl_jax.data.images import Decoded, read_image
from mtl_jax.data.masks import mask_dtype, usual_void
from mtl_jax.data.pixel_labels import decode_depth
from mtl_jax.data.sources.base import Fields, Reading, Sample, check_split, find_first, missing
from mtl_jax.errors import UserError


class Labels:
    """Images with every kind of label that the files hold: "detection", "segmentation", "classification",
    "multi_label", "value" and "depth".

    Classes without an order of their own are sorted by name. Without "train" and "val" a share of the images validates,
    chosen by their content, so that copies stay together and an image stays where it is when others come.

    Args:
        data_root: the folder of all datasets.
        split: "train" or "val".
        path: the folder or file of the labels, below `data_root` or absolute; "table.csv:column" names a column.
        format: a key of `formats.FORMATS`, or "auto" to recognise it by content.
        read_as: the kind of label that is wanted, a key of `formats.LABELS`, where a format leaves a choice.
        classes: names, in the order of their labels; of all labels, or by label. They name classes that the files call
            by number.
        other_classes: what an object or mask value of another class is: an "error", or "ignore"d.
        images: the folder of the images, where they lie apart.
        val_share: of the images that validate, where the dataset has no splits.
        annotated_on: labels of images that EXIF turns are of the "upright" or the "stored" pixels; "auto" follows the
            sizes in the files.
        grey_bits: of the levels of greyscale images in 16-bit files; 0 takes the fewest of 10, 12, 14 and 16 that hold
            those of all training images.

    Raises:
        UserError: no labels or images there, a broken file, or a class that is not in the table.
    """

    def __init__(
        self,
        *,
        data_root: str | Path,
        split: str,
        path: str,
        format: str = "auto",
        read_as: str | None = None,
        classes: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        other_classes: str = "error",
        images: str | None = None,
        val_share: float = splitting.VAL_SHARE,
        annotated_on: str = "auto",
        grey_bits: int = 0,
    ) -> None:
        if other_classes not in ("error", "ignore"):
            raise UserError(f"expected other_classes 'error' or 'ignore', found {other_classes!r}; choose one")
        self.grey = GreyBits(grey_bits)
        root = Path(data_root).expanduser()
        place = root / Path(path).expanduser()
        table = place.with_name(place.name.rpartition(":")[0] or place.name)
        if not Path(path).expanduser().is_absolute():  # else another data root would not help
            find_first(dict.fromkeys((place, table)), noun="labels", data_root=data_root)
        dataset = formats.read(
            place,
            kind=read_as,
            format=format,
            images=None if images is None else root / Path(images).expanduser(),
            annotated_on=annotated_on,
        )
        self.dataset = _with_class_names(dataset, classes)
        self.class_names = _tables(self.dataset, classes)
        self._check_classes(other_classes)
        self._records, note = splitting.of_split(self.dataset, check_split(split), val_share=val_share)
        reading = self.dataset.reading
        counts = {**reading.counts, **_counts(self._records)}
        self.reading = Reading({noun: count for noun, count in counts.items() if count}, (*reading.notes, *note))

    def _check_classes(self, other_classes: str) -> None:
        for label, names in self.dataset.classes.items():
            table = self.class_names[label]
            unknown_names = [name for name in names if name not in table and name != BACKGROUND]
            if unknown_names and other_classes == "error":
                raise UserError(
                    f"{self.dataset.path}: expected the classes {', '.join(table)} for {label}, found "
                    f"{unknown_names[0]!r}; "
                    "add it to the stream's options.classes and to the task's, or set options.other_classes='ignore'"
                )

    def __len__(self) -> int:
        return len(self._records)

    def image_origin(self, index: int) -> Path:
        """Returns the image's file."""
        return self._records[index].image

    def __getitem__(self, index: int) -> Sample:
        record = self._records[index]
        image = read_image(record.image, grey_bits=self.grey)
        labels = {
            label: _FIELDS[label](record, self.class_names[label], image, self.dataset) for label in self.class_names
        }
        return {"image": image.upright, "labels": labels, "id": record.name}


def _counts(records: Sequence[Record]) -> dict[str, int]:
    """Counts of one split; the others are of the whole dataset."""
    shapes = [record.shapes for record in records if record.shapes is not None]
    return {
        "images": len(records),
        "boxes": sum(map(len, shapes)),
        "crowds among them": sum(shape.crowd for of_image in shapes for shape in of_image),
        "images without boxes": sum(not of_image for of_image in shapes),
    }


def _with_class_names(dataset: Dataset, classes: Any) -> Dataset:
    """The stream's classes name what the files call by number."""
    for label in ("detection", "segmentation"):
        names = classes.get(label) if isinstance(classes, Mapping) else classes
        if names is not None:
            dataset = naming.with_names(dataset, label, tuple(names))
    return dataset


def _tables(dataset: Dataset, classes: Any) -> dict[str, tuple[str, ...]]:
    """The names of each label: as the stream says, or else as the dataset does."""
    tables = {}
    for label, names in dataset.classes.items():
        requested_names = classes.get(label) if isinstance(classes, Mapping) else classes
        if requested_names is None or not names:
            tables[label] = names
            continue
        table = tuple(requested_names)
        if label == "segmentation" and BACKGROUND in names[:1] and BACKGROUND not in table:
            table = (BACKGROUND, *table)
        elif label != "segmentation" and not isinstance(classes, Mapping):
            table = tuple(name for name in table if name != BACKGROUND)
        tables[label] = table
    return tables


def _detection(record: Record, table: Sequence[str], image: Decoded, dataset: Dataset) -> Fields:
    del image, dataset
    if record.shapes is None:  # nobody looked for objects
        boxes = np.full((1, 4), np.nan, np.float32)
        return {
            "boxes_xyxy": boxes,
            "label": np.zeros(1, np.int32),
            "crowd": np.zeros(1, bool),
            "area": np.zeros(1, np.float32),
        }
    shapes: list[Shape] = [shape for shape in record.shapes if shape.label in table]
    return {
        "boxes_xyxy": np.array([shape.xyxy for shape in shapes], np.float32).reshape(-1, 4),
        "label": np.array([table.index(shape.label) for shape in shapes], np.int32),
        "crowd": np.array([shape.crowd for shape in shapes], bool),
        "area": np.array([shape.area for shape in shapes], np.float32),
    }


def _segmentation(record: Record, table: Sequence[str], image: Decoded, dataset: Dataset) -> Fields:
    mask_names = dataset.classes["segmentation"]
    mask = pixels.mask_of(record, {name: value for value, name in enumerate(table)}, image)
    if mask is None:
        height, width = image.upright.shape[:2]
        return {"mask": np.full((height, width), usual_void(len(table)), mask_dtype(len(table)))}
    if record.mask is None or tuple(table) == tuple(mask_names):
        return {"mask": mask}
    void = usual_void(len(table))
    values = np.full(int(missing(mask)) + 1, void, mask_dtype(len(table)))
    for value, name in enumerate(mask_names):
        values[value] = table.index(name) if name in table else void
    return {"mask": values[mask]}


def _classification(record: Record, table: Sequence[str], image: Decoded, dataset: Dataset) -> Fields:
    del image, dataset
    return {"label": np.array(table.index(record.class_name) if record.class_name in table else -1, np.int32)}


def _multi_label(record: Record, table: Sequence[str], image: Decoded, dataset: Dataset) -> Fields:
    del image, dataset
    tags = record.tags
    if tags is None and record.shapes is not None:
        present_labels = {shape.label for shape in record.shapes}
        tags = {name: name in present_labels for name in table}
    return {"label": np.array([(tags or {}).get(name, np.nan) for name in table], np.float32)}


def _value(record: Record, table: Sequence[str], image: Decoded, dataset: Dataset) -> Fields:
    del table, image, dataset
    return {"value": np.array(np.nan if record.value is None else record.value, np.float32)}


def _depth(record: Record, table: Sequence[str], image: Decoded, dataset: Dataset) -> Fields:
    del table, dataset
    if record.depth is None:
        return {"depth": np.full(image.upright.shape[:2], np.nan, np.float32)}
    file, levels_per_metre = record.depth
    return {"depth": decode_depth(file, image=image, levels_per_metre=levels_per_metre, stored=record.stored)}


_FIELDS = {
    "detection": _detection,
    "segmentation": _segmentation,
    "classification": _classification,
    "multi_label": _multi_label,
    "value": _value,
    "depth": _depth,
}
