"""Partial labels: labels of a dataset with only some of a task's classes, renumbered for the task."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mtl_jax.data.label_shapes import shape_of
from mtl_jax.data.sources.base import Fields

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
    sample_labelled = fields.get(FIELD)
    if sample_labelled is None and classes.are_the_same:
        return fields
    labelled, numbers = np.array(classes.labelled), np.array(classes.numbers, np.int64)
    if sample_labelled is not None:
        task_labelled = np.zeros_like(labelled)
        task_labelled[numbers] = sample_labelled
        labelled &= task_labelled
    shape = shape_of(fields)
    label_fields = {name: value for name, value in fields.items() if name != FIELD}
    renumbered = shape.renumbered(label_fields, numbers, labelled)
    is_said = shape.says_what_is_unlabelled or (sample_labelled is None and labelled.all())
    return renumbered if is_said else {**renumbered, FIELD: labelled}
