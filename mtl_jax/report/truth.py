"""Labels in the form of predictions, so that both are drawn in the same way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from mtl_jax.tasks.base import Labels, Task


class Truth(NamedTuple):
    """One image's labels."""

    prediction: Mapping[str, np.ndarray] | None  # in the pixels of the image; None where words say it all
    words: str = ""
    unlabelled: Bool[np.ndarray, "height width"] | None = None


def of(task: Task, target: Labels) -> Truth | None:
    """Returns what is to be drawn of one image's labels; None for a kind of task that is not known here."""
    return KINDS[task.kind](task, target) if task.kind in KINDS else None


def _mask(task: Task, target: Labels) -> Truth:
    mask = np.asarray(target["mask"]).astype(np.int64)
    is_class = (mask >= 0) & (mask < len(task.classes))
    is_class &= _labelled(task, target)[np.where(is_class, mask, 0)]
    return Truth({"mask": np.where(is_class, mask, 0)}, unlabelled=~is_class)


def _boxes(task: Task, target: Labels) -> Truth:
    boxes, label = np.asarray(target["boxes_xyxy"], np.float64).reshape(-1, 4), np.asarray(target["label"], np.int64)
    is_object = np.isfinite(boxes).all(axis=1) & ~np.asarray(target.get("crowd", np.zeros(len(boxes), bool)))
    is_object &= _labelled(task, target)[label]
    count, label = int(is_object.sum()), label[is_object]
    prediction = {
        "boxes_xyxy": boxes[is_object],
        "label": label,
        "score": np.ones(count),
        "valid": np.ones(count, bool),
    }
    return Truth(prediction, "" if count else "no object")


def _labelled(task: Task, target: Labels) -> Bool[np.ndarray, " classes"]:
    """Whether a label of each class counts."""
    return np.broadcast_to(np.asarray(target.get("labelled", True)), len(task.classes))


def _class(task: Task, target: Labels) -> Truth:
    label = int(target["label"])
    return Truth(None, task.classes[label] if label >= 0 else "no label")


def _tags(task: Task, target: Labels) -> Truth:
    label = np.asarray(target["label"])
    return Truth(None, ", ".join(task.classes[index] for index in np.flatnonzero(label == 1)) or "none")


def _value(task: Task, target: Labels) -> Truth:
    value = float(target["value"])
    return Truth(None, "no label" if np.isnan(value) else f"{task.name} {value:.4g}")


def _depth(task: Task, target: Labels) -> Truth:
    depth = np.asarray(target["depth"], np.float64)
    is_measured = np.isfinite(depth)
    words = (
        f"{task.name} {depth[is_measured].min():.2g} m (dark) to {depth[is_measured].max():.2g} m (bright)"
        if is_measured.any()
        else ""
    )
    return Truth({"depth": depth}, words, ~is_measured)


KINDS: dict[str, Callable[[Task, Labels], Truth]] = {
    "segmentation": _mask,
    "detection": _boxes,
    "classification": _class,
    "multi_label": _tags,
    "regression": _value,
    "depth": _depth,
}
