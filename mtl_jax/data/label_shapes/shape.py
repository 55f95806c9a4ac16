"""Base class of label shapes: geometric transforms, joining, stacking, drawing and statistics of a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Integer, UInt8

from mtl_jax.data.sources.base import Fields, counted
from mtl_jax.data.warp import Placement

Label = Mapping[str, Any]  # by field: arrays, or numpy's scalars
Facts = dict[str, Any]  # of one image's label, or of all together, as JSON has them
Names = Sequence[str]  # of the classes


class LabelShape:
    """A label of the image as a whole, of which no more is known: what stored outputs are, and others begin with."""

    noun: ClassVar[str] = "labels"  # what is counted
    shows: ClassVar[str] = "image"  # what shows a class
    empty: ClassVar[str] = "images without a label"
    unit: ClassVar[str] = ""  # of its numbers
    says_what_is_unlabelled: ClassVar[bool] = False  # by itself, without the field "labelled"
    can_join: ClassVar[bool] = False  # with those of other images, in a mosaic

    # On the way to the network.

    def place(self, fields: Fields, placement: Placement, size: tuple[int, int], min_visible: float) -> Fields:
        """Moves a label with its image; one of the whole image stays as it is, whatever is cropped away.

        Args:
            fields: are not changed.
            placement: where the image goes.
            size: of the output, (height, width) px.
            min_visible: boxes with a smaller share of their area left inside the output are dropped.
        """
        del placement, size, min_visible
        return dict(fields)

    def join(self, quarters: Sequence[Fields], corners: Sequence[tuple[int, int]]) -> Fields:
        """Unites the labels of four images that are composed into one, where `can_join`.

        Args:
            quarters: of the upper left, upper right, lower left and lower right image.
            corners: top and left of each, px.
        """
        raise NotImplementedError

    def stack(self, labels: Sequence[Fields], max_boxes: int) -> Fields:
        """Returns the labels of a batch, by field.

        Args:
            labels: of the images.
            max_boxes: rows of a label of boxes.
        """
        del max_boxes
        return {name: np.stack([fields[name] for fields in labels]) for name in labels[0]}

    def renumbered(
        self, fields: Fields, numbers: Integer[np.ndarray, "own"], labelled: Bool[np.ndarray, "of"]
    ) -> Fields:
        """Returns a label in the numbering of a task, without what it says of classes that count as unlabelled.

        Args:
            fields: of a sample.
            numbers: of the dataset's classes among the task's.
            labelled: which of the task's classes are.
        """
        del numbers, labelled
        return fields

    def with_void(self, fields: Fields, value: int | None) -> Fields:
        """Marks pixels without a label as a task does; None keeps the datasets' value."""
        del value
        return fields

    # Pasted onto another image.

    def outline(self, fields: Label, names: Names, size: tuple[int, int]) -> Bool[np.ndarray, "height width"] | None:
        """Returns the pixels of what the label outlines; None where it is of the image as a whole."""
        del fields, names, size
        return None

    def restrict(self, fields: Fields, region: Bool[np.ndarray, "height width"]) -> Fields:
        """Returns a label restricted to those pixels."""
        del region
        return fields

    # What it says.

    def classes_shown(self, fields: Label) -> set[int]:
        """Returns the numbers of the classes that the image shows; what is missing shows nothing."""
        del fields
        return set()

    def caption(self, fields: Label, names: Names) -> str:
        """Returns what the label says in words."""
        class_numbers = sorted(self.classes_shown(fields))
        return ", ".join(names[index] for index in class_numbers if index < len(names)) or "nothing"

    def draw(
        self, picture: UInt8[np.ndarray, "height width 3"], fields: Label, scale: float
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Returns a picture with the label drawn in.

        Args:
            picture: of the image, RGB.
            fields: of the label.
            scale: of the picture, against the image.
        """
        del fields, scale
        return picture

    def observe(self, fields: Label) -> Facts:
        """Returns what the label of one image holds."""
        raise NotImplementedError

    def total(self, facts: Sequence[Facts], names: Names) -> Facts:
        """Returns "labelled", "unlabelled", and "classes" by name or the range of the values.

        Args:
            facts: of every image.
            names: of the classes.
        """
        raise NotImplementedError

    def is_empty(self, facts: Facts, names: Names) -> bool:
        """Whether the label of one image says nothing."""
        raise NotImplementedError

    def summary(self, figures: Mapping[str, Any]) -> str:
        """Returns what `total` counted, in a few words."""
        missing = figures["unlabelled"]
        return counted(figures["labelled"], f"{self.noun} labelled") + (f", {missing} not" if missing else "")


def span(low: Sequence[float], high: Sequence[float]) -> Facts:
    """Returns the range of values, and their median where each has one; nothing without any."""
    if not low:
        return {}
    middle = {"median": median(low)} if low is high else {}
    return {"min": min(low), **middle, "max": max(high)}
