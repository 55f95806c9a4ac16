"""Shapes of labels: one class for each, with all that depends on it between a dataset's files and the network."""

from __future__ import annotations

import numpy as np

from mtl_jax.data.label_shapes.boxes import Boxes
from mtl_jax.data.label_shapes.pixels import DepthMap, Mask
from mtl_jax.data.label_shapes.shape import Label, LabelShape
from mtl_jax.data.label_shapes.whole import Number, OneClass, SeveralClasses

SHAPES: dict[str, LabelShape] = {
    "mask": Mask(),
    "boxes": Boxes(),
    "class": OneClass(),
    "classes": SeveralClasses(),
    "value": Number(),
    "depth": DepthMap(),
}
# The field by which a shape is known, the first that a label has. A label that is a row is of several classes.
FIELDS = {"mask": "mask", "boxes_xyxy": "boxes", "value": "value", "depth": "depth", "label": "class"}
_DEFAULT_SHAPE = LabelShape()


def name_of(fields: Label) -> str:
    """Returns the key of `SHAPES` for a label; "" where it has none of these shapes."""
    field = next((field for field in FIELDS if field in fields), "")
    return "classes" if field == "label" and np.ndim(fields[field]) == 1 else FIELDS.get(field, "")


def shape_of(fields: Label) -> LabelShape:
    """Returns the shape of a label."""
    return shape_named(name_of(fields))


def shape_named(name: str) -> LabelShape:
    """Returns one of `SHAPES`, or a shape of which nothing is known."""
    return SHAPES.get(name, _DEFAULT_SHAPE)
