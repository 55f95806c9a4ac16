"""Image-level labels, which cropping does not change: one class, several classes, or a number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Integer

from mtl_jax.data.label_shapes.shape import Facts, Label, LabelShape, Names, span
from mtl_jax.data.sources.base import Fields


class OneClass(LabelShape):
    """The one class of an image: {"label": i32[]}, -1 = missing."""

    noun = "images"
    empty = "images without a class"

    def renumbered(
        self, fields: Fields, numbers: Integer[np.ndarray, "own"], labelled: Bool[np.ndarray, "of"]
    ) -> Fields:
        """Renumbers the class; one that counts as unlabelled is missing."""
        label = int(fields["label"])
        is_known = 0 <= label < len(numbers) and labelled[numbers[label]]
        return {**fields, "label": np.array(numbers[label] if is_known else -1, np.int32)}

    def classes_shown(self, fields: Label) -> set[int]:
        """Returns the class."""
        label = int(fields["label"])
        return {label} if label >= 0 else set()

    def observe(self, fields: Label) -> Facts:
        """Returns the class."""
        return {"class": int(fields["label"])}

    def total(self, facts: Sequence[Facts], names: Names) -> Facts:
        """Returns the images of each class."""
        images = Counter(image_facts["class"] for image_facts in facts)
        labelled = sum(count for label, count in images.items() if label >= 0)
        return {
            "labelled": labelled,
            "unlabelled": len(facts) - labelled,
            "classes": {name: {"images": images[label]} for label, name in enumerate(names)},
        }

    def is_empty(self, facts: Facts, names: Names) -> bool:
        """Whether the image has no class."""
        del names
        return facts["class"] < 0


class SeveralClasses(LabelShape):
    """Which classes are true of an image: {"label": f32[classes]}, NaN = unknown."""

    noun = "tags"
    empty = "images without a tag"
    says_what_is_unlabelled = True
    can_join = True

    def join(self, quarters: Sequence[Fields], corners: Sequence[tuple[int, int]]) -> Fields:
        """True where true of any, else unknown where unknown of any, even where the crop shows nothing of it."""
        del corners
        labels = np.stack([quarter["label"] for quarter in quarters])
        return {"label": np.where((labels == 1).any(axis=0), np.float32(1), labels.max(axis=0))}  # of NaN, NaN

    def renumbered(
        self, fields: Fields, numbers: Integer[np.ndarray, "own"], labelled: Bool[np.ndarray, "of"]
    ) -> Fields:
        """Says NaN of unlabelled classes; one that the dataset labels without a column for it is true of no image."""
        task_labels = np.zeros(len(labelled), np.float32)
        task_labels[numbers] = fields["label"]
        return {"label": np.where(labelled, task_labels, np.float32(np.nan))}

    def classes_shown(self, fields: Label) -> set[int]:
        """Returns the classes that are true."""
        return set(np.flatnonzero(fields["label"] == 1).tolist())

    def observe(self, fields: Label) -> Facts:
        """Returns the classes that are true, and those that are false."""
        label = fields["label"]
        return {"present": np.flatnonzero(label > 0).tolist(), "absent": np.flatnonzero(label == 0).tolist()}

    def total(self, facts: Sequence[Facts], names: Names) -> Facts:
        """Returns of how many images each class is true, and false."""
        positives = Counter(label for image_facts in facts for label in image_facts["present"])
        absent = Counter(label for image_facts in facts for label in image_facts["absent"])
        labelled = positives.total() + absent.total()
        return {
            "labelled": labelled,
            "unlabelled": len(facts) * len(names) - labelled,
            "classes": {name: {"images": positives[i], "images_without": absent[i]} for i, name in enumerate(names)},
        }

    def is_empty(self, facts: Facts, names: Names) -> bool:
        """Whether nothing is known of the image."""
        del names
        return not facts["present"] and not facts["absent"]


class Number(LabelShape):
    """A number for an image: {"value": f32[]}, NaN = missing."""

    noun = "values"
    empty = "images without a number"

    def caption(self, fields: Label, names: Names) -> str:
        """Returns the number."""
        del names
        return f"{float(fields['value']):.4g}"

    def observe(self, fields: Label) -> Facts:
        """Returns the number."""
        value = float(fields["value"])
        return {"value": value if np.isfinite(value) else None}

    def total(self, facts: Sequence[Facts], names: Names) -> Facts:
        """Returns the range of the numbers."""
        del names
        values = [image_facts["value"] for image_facts in facts if image_facts["value"] is not None]
        return {"labelled": len(values), "unlabelled": len(facts) - len(values)} | span(values, values)

    def is_empty(self, facts: Facts, names: Names) -> bool:
        """Whether the image has none."""
        del names
        return facts["value"] is None
