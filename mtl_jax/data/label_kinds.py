"""What one label holds, and what all labels of a split hold together: one pair of functions for every kind of label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data.sources.base import Fields

Facts = dict[str, Any]  # of one image's label, or of all together, as JSON has them
Names = Sequence[str]  # of the classes


class LabelKind(NamedTuple):
    """How labels of one kind are counted."""

    noun: str  # of what is counted
    observe: Callable[[Fields], Facts]
    # (facts of every image, class names) -> "labelled", "unlabelled", and "classes" by name or the range of the values
    total: Callable[[Sequence[Facts], Names], Facts]


def kind_of(fields: Mapping[str, np.ndarray]) -> str:
    """Returns the key of `KINDS` for a label, by the field that it has."""
    name = next(name for name in FIELDS if name in fields)
    return FIELDS[name] if name != "label" or np.ndim(fields[name]) == 0 else "classes"


def _observe_mask(fields: Fields) -> Facts:
    values, counts = _counted(fields["mask"])
    return {"pixels": {str(value): count for value, count in zip(values, counts, strict=True)}}


def _counted(mask: np.ndarray) -> tuple[list[int], list[int]]:
    if mask.size and mask.dtype.itemsize > 1 and (mask.min() < 0 or mask.max() > np.iinfo(np.uint16).max):
        values, counts = np.unique(mask, return_counts=True)
    else:
        counts = np.bincount(mask.ravel())
        values = np.flatnonzero(counts)
        counts = counts[values]
    return values.tolist(), counts.tolist()


def _total_masks(facts: Sequence[Facts], names: Names) -> Facts:
    pixels: Counter[int] = Counter()
    images: Counter[int] = Counter()
    for each in facts:
        for value, count in each["pixels"].items():
            pixels[int(value)] += count
            images[int(value)] += 1
    labelled = sum(pixels[value] for value in range(len(names)))  # `base.missing` is beyond
    return {
        "labelled": labelled,
        "unlabelled": sum(pixels.values()) - labelled,
        "classes": {name: {"images": images[i], "pixels": pixels[i]} for i, name in enumerate(names)},
    }


def _observe_boxes(fields: Fields) -> Facts:
    crowd = fields.get("crowd", np.zeros(len(fields["label"]), bool))
    boxes = Counter(fields["label"][~crowd].tolist())
    return {"boxes": {str(label): count for label, count in sorted(boxes.items())}, "crowds": int(crowd.sum())}


def _total_boxes(facts: Sequence[Facts], names: Names) -> Facts:
    boxes: Counter[int] = Counter()
    images: Counter[int] = Counter()
    for each in facts:
        for label, count in each["boxes"].items():
            boxes[int(label)] += count
            images[int(label)] += 1
    return {
        "labelled": sum(boxes.values()),
        "unlabelled": sum(each["crowds"] for each in facts),
        "images_without": sum(not each["boxes"] for each in facts),
        "classes": {name: {"images": images[i], "boxes": boxes[i]} for i, name in enumerate(names)},
    }


def _observe_class(fields: Fields) -> Facts:
    return {"class": int(fields["label"])}


def _total_class(facts: Sequence[Facts], names: Names) -> Facts:
    images = Counter(each["class"] for each in facts)
    labelled = sum(count for label, count in images.items() if label >= 0)
    return {
        "labelled": labelled,
        "unlabelled": len(facts) - labelled,
        "classes": {name: {"images": images[label]} for label, name in enumerate(names)},
    }


def _observe_classes(fields: Fields) -> Facts:
    label = fields["label"]
    return {"present": np.flatnonzero(label > 0).tolist(), "absent": np.flatnonzero(label == 0).tolist()}


def _total_classes(facts: Sequence[Facts], names: Names) -> Facts:
    present = Counter(label for each in facts for label in each["present"])
    absent = Counter(label for each in facts for label in each["absent"])
    labelled = present.total() + absent.total()
    return {
        "labelled": labelled,
        "unlabelled": len(facts) * len(names) - labelled,
        "classes": {name: {"images": present[i], "images_without": absent[i]} for i, name in enumerate(names)},
    }


def _observe_value(fields: Fields) -> Facts:
    value = float(fields["value"])
    return {"value": value if np.isfinite(value) else None}


def _total_values(facts: Sequence[Facts], names: Names) -> Facts:
    del names
    values = [each["value"] for each in facts if each["value"] is not None]
    return {"labelled": len(values), "unlabelled": len(facts) - len(values)} | _range(values, values)


def _observe_depth(fields: Fields) -> Facts:
    depth = fields["depth"]
    known = depth[np.isfinite(depth)]
    low, high = (float(known.min()), float(known.max())) if known.size else (None, None)
    return {"pixels": int(known.size), "missing": int(depth.size - known.size), "min": low, "max": high}


def _total_depths(facts: Sequence[Facts], names: Names) -> Facts:
    del names
    known = [each for each in facts if each["pixels"]]
    return {
        "labelled": sum(each["pixels"] for each in facts),
        "unlabelled": sum(each["missing"] for each in facts),
    } | _range([each["min"] for each in known], [each["max"] for each in known])


def _range(low: Sequence[float], high: Sequence[float]) -> Facts:
    if not low:
        return {}
    middle = {"median": median(low)} if low is high else {}
    return {"min": min(low), **middle, "max": max(high)}


FIELDS = {"mask": "mask", "boxes_xyxy": "boxes", "value": "value", "depth": "depth", "label": "class"}
KINDS: dict[str, LabelKind] = {
    "mask": LabelKind("pixels", _observe_mask, _total_masks),
    "boxes": LabelKind("boxes", _observe_boxes, _total_boxes),
    "class": LabelKind("images", _observe_class, _total_class),
    "classes": LabelKind("answers", _observe_classes, _total_classes),
    "value": LabelKind("values", _observe_value, _total_values),
    "depth": LabelKind("pixels", _observe_depth, _total_depths),
}
