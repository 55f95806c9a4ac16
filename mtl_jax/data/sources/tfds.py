"""Prepared TensorFlow Datasets, read without TensorFlow; a mapping says which field is which label."""

from __future__ import annotations

import functools
import importlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.data import masks, orientation
from mtl_jax.data.grey import GreyBits
from mtl_jax.data.images import Decoded, read_image
from mtl_jax.data.pixel_labels import follow_image, mask_values
from mtl_jax.data.sources.base import SPLITS, Fields, Reading, Sample, check_split, warn_once
from mtl_jax.errors import UserError

FIELDS = {"image", "segmentation", "detection", "classification"}
BOX_FIELDS = {"boxes", "label", "crowd", "area"}
SLACK = 0.01  # of the image's side: how far outside of it a corner may lie, to be clipped
DEFAULT_SPLITS = {"train": "train", "val": "validation"}


class Tfds:
    """A prepared dataset in a random-access format (array_record).

    Args:
        data_root: the folder of all datasets.
        split: "train" or "val".
        name: of the dataset, as TFDS spells it, e.g. "voc/2012:5.0.0".
        fields: label name -> path of the field inside an example, with "/" between levels:
            {"image": "image", "classification": "label"}, {"segmentation": "segmentation_mask"}, or
            {"detection": {"boxes": "objects/bbox", "label": "objects/label", "crowd": "objects/is_crowd"}}.
        splits: "train" and "val" -> the dataset's split, slices allowed ("train[90%:]").
        data_dir: TFDS's folder below `data_root`.
        classes: label name -> class names, where the dataset has none of its own.
        void: the only mask value of pixels that nobody labelled; by default 255 (65535 of more than 255 classes) and
            `ignore_label`. Without it, masks of two classes that hold 0 and 255 alone are read as the two classes.
        ignore_label: what the task calls void.
        annotated_on: boxes of images that EXIF turns, and masks whose size does not decide, are of the "upright" or the
            "stored" pixels; "auto" refuses those of which no size decides.
        grey_bits: of the levels of greyscale images in 16-bit files; 0 takes the fewest of 10, 12, 14 and 16 that hold
            those of all training images.

    Raises:
        UserError: not prepared there, no such split, or no such field.
    """

    def __init__(
        self,
        *,
        data_root: str | Path,
        split: str,
        name: str,
        fields: Mapping[str, Any],
        splits: Mapping[str, str] | None = None,
        data_dir: str = "tensorflow_datasets",
        classes: Mapping[str, Sequence[str]] | None = None,
        void: int | None = None,
        ignore_label: int | None = None,
        annotated_on: str = "auto",
        grey_bits: int = 0,
    ) -> None:
        self.grey = GreyBits(grey_bits)
        check_split(split)
        self.name = name
        self._fields = _checked(fields)
        folder = Path(data_root).expanduser() / data_dir
        self._split = dict(splits or DEFAULT_SPLITS)[split]
        self._data = _open(name, self._split, folder, self._fields)
        class_tables = {label: tuple(names) for label, names in (classes or {}).items()}
        self.class_names = {
            label: class_tables.get(label) or _names(self._data.dataset_info.features, path)
            for label, path in self._fields.items()
            if label != "image"
        }
        self._mask_classes = len(self.class_names.get("segmentation", ()))
        self._void = masks.void_values(void, ignore_label, self._mask_classes)
        self._may_be_binary = void is None and self._mask_classes == 2
        self._annotated_on = orientation.check(annotated_on)
        training = dict(splits or DEFAULT_SPLITS).get(SPLITS[0])
        self._deciding = (
            functools.partial(_open, name, training, folder, self._fields)
            if training is not None and split != SPLITS[0]
            else None
        )
        self._is_read = False  # whether `reading` was accessed

    def __len__(self) -> int:
        return len(self._data)

    def image_origin(self, index: int) -> bytes:
        """Returns the image as it is stored."""
        content = _get(self._data[index], self._fields["image"], f"{self.name} {self._split} example {index}")
        return content if isinstance(content, bytes) else np.asarray(content).tobytes()

    def __getitem__(self, index: int) -> Sample:
        location = f"{self.name} {self._split} example {index}"
        example = self._data[index]
        content = _get(example, self._fields["image"], location)
        image = (
            read_image(content, name=location, grey_bits=self.grey)
            if isinstance(content, bytes)
            else Decoded(_as_rgb(np.asarray(content), location), 1)
        )
        labels: dict[str, Fields] = {}
        for label, path in self._fields.items():
            if label == "segmentation":
                labels[label] = {"mask": self._mask(_get(example, path, location), image, location)}
            elif label == "detection":
                stored = image.header.is_turned and self._convention.decided(location, "boxes")
                labels[label], _ = _boxes(example, path, image.header, stored, location)
            elif label != "image":
                labels[label] = {"label": np.asarray(_get(example, path, location), np.int32)}
            if label in ("detection", "classification"):
                least = 0 if label == "detection" else -1  # which is missing
                _check_classes(labels[label]["label"], least, self.class_names[label], f"{location} {label}")
        return {"image": image.upright, "labels": labels, "id": f"{self._split}/{index}"}

    @functools.cached_property
    def reading(self) -> Reading:
        """Counts and warnings of reading; looks at the boxes of every example, and at every mask of two classes."""
        self._is_read = True
        counts = Counter({"images": len(self)})
        for index in range(len(self)) if "detection" in self._fields else ():
            location = f"{self.name} {self._split} example {index}"
            unit = orientation.Header(1, 1, 1)
            boxes, drop_counts = _boxes(self._data[index], self._fields["detection"], unit, False, location)
            counts += Counter({"boxes": len(boxes["label"]), **drop_counts})
            counts["crowds among them"] += int(boxes["crowd"].sum())
        return Reading({name: count for name, count in counts.items() if count}, tuple(self._mask_notes()))

    @functools.cached_property
    def _convention(self) -> orientation.Convention:
        settings = {"stored": True, "upright": False}
        return orientation.Convention(settings.get(self._annotated_on))

    def _mask_notes(self) -> Iterator[str]:
        if self._is_binary:
            yield masks.binary_note(f"{self.name} {self._split} example 0", self.class_names["segmentation"])

    @functools.cached_property
    def _is_binary(self) -> bool:
        """The training masks decide for both splits, so that one value means one class."""
        if not self._may_be_binary:
            return False
        data = self._data if self._deciding is None else self._deciding()
        path = self._fields["segmentation"]
        values = (_numbers(_get(data[index], path, self.name), self.name) for index in range(len(data)))
        is_binary = masks.is_binary(values, 2)
        if is_binary and not self._is_read:
            warn_once(masks.binary_note(f"{self.name} {self._split} example 0", self.class_names["segmentation"]))
        return is_binary

    def _mask(self, content: Any, image: Decoded, location: str) -> np.ndarray:
        values = _numbers(content, f"{location} mask")
        mask = masks.class_indices(
            values, class_count=self._mask_classes, void=self._void, binary=self._is_binary, name=f"{location} mask"
        )
        header = image.header
        size_tells = not header.is_turned or header.upright_size != (header.width, header.height)
        stored = not size_tells and self._convention.decided(location, "masks")
        return follow_image(mask, image, stored=stored, noun="mask", name=location)


def _checked(fields: Mapping[str, Any]) -> dict[str, Any]:
    field_paths = {name: dict(path) if isinstance(path, Mapping) else path for name, path in fields.items()}
    if "image" not in field_paths or set(field_paths) - FIELDS:
        raise UserError(
            f"expected fields with an image, of {sorted(FIELDS)}, found {sorted(field_paths)}; correct fields"
        )
    boxes = field_paths.get("detection", {"boxes": "", "label": ""})
    if not isinstance(boxes, dict) or not {"boxes", "label"} <= set(boxes) <= BOX_FIELDS:
        raise UserError(f"expected fields.detection with boxes, label, perhaps crowd and area, found {boxes}")
    return field_paths


def _open(name: str, split: str, folder: Path, fields: Mapping[str, Any]) -> Any:
    """Images and masks stay encoded: our decoder handles and refuses them as those of every other source."""
    library = importlib.import_module("tensorflow_datasets")  # slow to import, and rarely needed
    try:
        builder = library.builder(name, data_dir=folder)
        encoded_fields = _encoded_fields(library, builder.info.features, fields)
        return builder.as_data_source(split=split, decoders=encoded_fields)
    except UserError:
        raise
    except Exception as error:  # TFDS raises many kinds for what is not there
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"expected the TFDS dataset {name} with split {split!r}, prepared in {folder}, found none "
            f"({reason}); prepare it there with `tfds build --file_format=array_record` or set data_dir"
        ) from error


def _encoded_fields(library: Any, features: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    skip: dict[str, Any] = {}
    for label in ("image", "segmentation"):
        if label not in fields or not isinstance(_feature(features, fields[label]), library.features.Image):
            continue
        *parents, last = fields[label].split("/")
        level = skip
        for parent in parents:
            level = level.setdefault(parent, {})
        level[last] = library.decode.SkipDecoding()
    return skip


def _feature(features: Any, path: str) -> Any:
    for step in path.split("/"):
        features = getattr(features, "feature", features)  # of a sequence
        if step not in features:
            raise UserError(f"expected a field {path!r}, found {', '.join(features)}; correct fields")
        features = features[step]
    return getattr(features, "feature", features)


def _names(features: Any, path: Any) -> tuple[str, ...]:
    feature = _feature(features, path["label"] if isinstance(path, dict) else path)
    return tuple(getattr(feature, "names", None) or ())


def _get(example: Any, path: str, location: str) -> Any:
    for step in path.split("/"):
        if not isinstance(example, Mapping) or step not in example:
            raise UserError(f"{location}: expected a field {path!r}, found no {step!r}; correct fields")
        example = example[step]
    return example


def _as_rgb(pixels: np.ndarray, location: str) -> np.ndarray:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise UserError(
            f"{location}: expected u8[height, width, 3] or an encoded image, found {pixels.dtype}{pixels.shape}"
        )
    return pixels


def _check_classes(label: np.ndarray, least: int, names: Sequence[str], location: str) -> None:
    out_of_range = label[(label < least) | ((label >= len(names)) & bool(names))]
    if out_of_range.size:
        raise UserError(
            f"{location}: expected classes {least} to {len(names) - 1}, found {out_of_range.ravel()[0]}; list every "
            "class in the stream's options.classes"
        )


def _numbers(content: Any, location: str) -> np.ndarray:
    if isinstance(content, bytes):
        return mask_values(content, name=location)
    values = np.asarray(content)
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] != 1):
        raise UserError(
            f"{location}: expected a mask of one channel, found the shape {list(values.shape)}; prepare the dataset "
            "with class indices, not colours"
        )
    return (values[:, :, 0] if values.ndim == 3 else values).astype(np.int64)


def _boxes(
    example: Any, paths: Mapping[str, str], image: orientation.Header, stored: bool, location: str
) -> tuple[Fields, dict[str, int]]:
    """Returns boxes, and how many were left out and why.

    TFDS boxes are ymin, xmin, ymax, xmax as fractions of the image; ours are pixels, x first.
    """
    width, height = (image.width, image.height) if stored else image.upright_size
    fractions = np.asarray(_get(example, paths["boxes"], location), np.float32).reshape(-1, 4)
    outside = fractions[(fractions < -SLACK) | (fractions > 1 + SLACK)]
    if outside.size:
        raise UserError(
            f"{location}: expected corners of boxes as shares of the image, top, left, bottom, right, from 0 to 1, "
            f"found {outside[0]:g}; prepare the dataset with tfds.features.BBoxFeature"
        )
    boxes = fractions[:, [1, 0, 3, 2]].clip(0, 1) * np.array([[width, height, width, height]], np.float32)
    label = np.asarray(_get(example, paths["label"], location), np.int32).reshape(-1)
    crowd = (
        np.asarray(_get(example, paths["crowd"], location), bool) if "crowd" in paths else np.zeros(len(label), bool)
    )
    sides = boxes[:, 2:] - boxes[:, :2]
    area = np.asarray(_get(example, paths["area"], location), np.float32) if "area" in paths else sides.prod(axis=1)
    has_area = (sides > 0).all(axis=1)  # False for NaN as well
    rows = np.column_stack([boxes, label, crowd])
    first = np.zeros(len(rows), bool)
    first[np.unique(rows, axis=0, return_index=True)[1]] = True
    keep = has_area & first
    upright_boxes = orientation.turn_boxes(boxes[keep], image) if stored else boxes[keep]
    boxes_fields = {"boxes_xyxy": upright_boxes, "label": label[keep], "crowd": crowd[keep], "area": area[keep]}
    drop_counts = {"degenerate": int((~has_area).sum()), "listed twice": int((has_area & ~first).sum())}
    return boxes_fields, {f"boxes dropped: {reason}": count for reason, count in drop_counts.items()}
