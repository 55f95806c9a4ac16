"""Labels of a dataset that knows only some of a task's classes: in the task's numbering, with what it labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer

from mtl_jax.data.sources.base import Fields, missing

FIELD = "labelled"  # of a label: which classes somebody has looked for in the image


class Classes(NamedTuple):
    """A task's classes as a dataset sees them."""

    numbers: tuple[int, ...]  # of the dataset's classes among the task's
    labelled: tuple[bool, ...]  # of the task's classes: whether the dataset labels it

    @property
    def are_the_same(self) -> bool:
        """Whether the dataset's classes are the task's, and all are labelled."""
        return all(self.labelled) and self.numbers == tuple(range(len(self.labelled)))


def in_task_terms(fields: Fields, classes: Classes) -> Fields:
    """Returns a label in the numbering of the task, without what it says of classes that count as unlabelled.

    Args:
        fields: of a sample. "labelled" bool[dataset's classes] in it says what was looked for in this image.
        classes: of the task, as the dataset sees them.

    Returns:
        The fields, with "labelled" bool[task's classes] where not every class is labelled in every image. Boxes of
        other classes are dropped, their pixels are void, and a class of the whole image is missing. Labels of several
        classes say NaN for them instead.
    """
    own = fields.get(FIELD)
    if own is None and classes.are_the_same:
        return fields
    labelled, numbers = np.array(classes.labelled), np.array(classes.numbers, np.int64)
    if own is not None:
        seen = np.zeros_like(labelled)
        seen[numbers] = own
        labelled &= seen
    if "label" in fields and "boxes_xyxy" not in fields and np.ndim(fields["label"]) == 1:
        return {"label": _of_several(fields["label"], numbers, labelled)}
    rest = {name: value for name, value in fields.items() if name != FIELD}
    if "mask" in fields:
        rest["mask"] = _mask(fields["mask"], numbers, labelled)
    elif "boxes_xyxy" in fields:
        if not np.isnan(fields["boxes_xyxy"]).any():
            label = numbers[fields["label"]].astype(np.int32)
            rest = {name: value[labelled[label]] for name, value in {**rest, "label": label}.items()}
    else:
        label = int(fields["label"])
        known = 0 <= label < len(numbers) and labelled[numbers[label]]
        rest["label"] = np.array(numbers[label] if known else -1, np.int32)
    return rest if own is None and labelled.all() else {**rest, FIELD: labelled}


def _mask(
    mask: Integer[np.ndarray, "height width"], numbers: Integer[np.ndarray, "own"], labelled: Bool[np.ndarray, "of"]
) -> Integer[np.ndarray, "height width"]:
    """Renumbers pixels; void ones, and those of a class that counts as unlabelled, are void."""
    dtype = mask.dtype if mask.dtype.kind == "u" and len(labelled) <= missing(mask) else np.dtype(np.int32)
    void = missing(np.zeros(0, dtype))
    table = np.append(np.where(labelled[numbers], numbers, void), void).astype(dtype)
    inside = (mask >= 0) & (mask < len(numbers))
    return table[np.where(inside, mask, len(numbers))]


def _of_several(label: np.ndarray, numbers: Integer[np.ndarray, "own"], labelled: Bool[np.ndarray, "of"]) -> np.ndarray:
    """A class that the dataset is said to label, but has no column for, is true of none of its images."""
    found = np.zeros(len(labelled), np.float32)
    found[numbers] = label
    return np.where(labelled, found, np.float32(np.nan))
