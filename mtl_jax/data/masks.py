"""Meaning of a mask's values: classes, void, and the 0/255 convention of datasets with two classes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from jaxtyping import Int, UInt8, UInt16

from mtl_jax.data.sources.base import VOID, missing
from mtl_jax.errors import UserError


def mask_dtype(class_count: int) -> type[np.uint8] | type[np.uint16]:
    """Returns the type of masks of so many classes, whose largest value is left for void.

    Raises:
      UserError: there are more classes than 16 bits can hold.
    """
    if class_count > np.iinfo(np.uint16).max:
        raise UserError(f"expected at most {np.iinfo(np.uint16).max} classes of a mask, found {class_count}; join some")
    return np.uint8 if class_count <= VOID else np.uint16


def usual_void(class_count: int) -> int:
    """Returns the value that marks void pixels in files of so many classes, unless set otherwise."""
    return int(np.iinfo(mask_dtype(class_count)).max)


def void_values(void: int | None, ignore_label: int | None, class_count: int) -> frozenset[int]:
    """Returns the values that a dataset's files mark void pixels by.

    Args:
      void: what the dataset's option says; None for the usual one and the task's.
      ignore_label: what the task calls void; None where that is not known.
      class_count: of the dataset.

    Raises:
      UserError: a value is a class.
    """
    values = {usual_void(class_count), ignore_label} - {None} if void is None else {void}
    classes = [value for value in values if value is not None and 0 <= value < class_count]
    if classes:
        raise UserError(f"expected void outside the classes 0 to {class_count - 1}, found {classes[0]}; change void")
    return frozenset(value for value in values if value is not None)


def is_binary(masks: Iterable[Int[np.ndarray, "_ _"]], class_count: int) -> bool:
    """Whether masks of two classes are written as 0 and 255: both occur, and no other value does.

    Args:
      masks: the numbers of each file; read only as far as needed.
      class_count: of the dataset.
    """
    distinct_values: set[int] = set()
    for values in masks if class_count == 2 else ():
        distinct_values |= set(distinct(values).tolist())
        if distinct_values - {0, VOID}:
            return False
    return distinct_values == {0, VOID}


def binary_note(first: object, classes: Sequence[str]) -> str:
    """Returns what is said of masks that `is_binary`."""
    return (
        f"The masks hold 0 and {VOID} alone (first: {first}): read as {classes[0]} and {classes[1]}; set the stream's "
        f"options.void={VOID} if {VOID} marks pixels that nobody labelled."
    )


def class_indices(
    values: Int[np.ndarray, "height width"],
    *,
    class_count: int,
    void: Collection[int] | None = None,
    binary: bool = False,
    name: str,
) -> UInt8[np.ndarray, "height width"] | UInt16[np.ndarray, "height width"]:
    """Turns the numbers of a mask into class indices.

    Args:
      values: as in the file.
      class_count: indices must be below it, or void; 0 checks nothing.
      void: values of pixels that nobody labelled; by default 255, or 65535 of more than 255 classes.
      binary: the values are 0 and 255, which stand for class 0 and class 1.
      name: of the mask, as the error names it.

    Returns:
      Class indices, `base.missing` where void: u8, or u16 of more than 255 classes.

    Raises:
      UserError: a value is neither a class nor void; names the values.
    """
    void = {usual_void(class_count)} if void is None else set(void)
    limit = class_count if class_count > 0 else VOID
    if binary:
        void -= {VOID}
    distinct_values = distinct(values)
    is_class = np.isin(distinct_values, [0, VOID]) if binary else (distinct_values >= 0) & (distinct_values < limit)
    unknown_values = distinct_values[~is_class & ~np.isin(distinct_values, list(void))]
    if unknown_values.size:
        marks = " or ".join(map(str, sorted(void)))
        expected = f"0 or {VOID}, as in all training masks" if binary else f"class indices 0 to {limit - 1}"
        raise UserError(
            f"{name}: expected {expected}{f' or {marks} (void)' if marks else ''}, found "
            f"{unknown_values[:5].tolist()}; correct "
            "the mask or the class table; if a value marks pixels that nobody labelled, name it in the stream's "
            "options.void"
        )
    indices = (values == VOID if binary else values).astype(mask_dtype(class_count))
    for value in void:
        indices[values == value] = missing(indices)
    return indices


def distinct(values: Int[np.ndarray, "height width"]) -> Int[np.ndarray, "found"]:
    """Returns the values that occur, sorted."""
    flat = values.ravel()
    if flat.size and flat.min() >= 0 and flat.max() <= np.iinfo(np.uint16).max:
        return np.flatnonzero(np.bincount(flat))  # many times faster than sorting
    return np.unique(flat)
