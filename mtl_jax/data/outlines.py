"""Rasterisation of polygons, as COCO defines it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from mtl_jax.data.images import MAX_PIXELS
from mtl_jax.errors import UserError

MAX_OUTLINE_PX = 1_000_000  # along the edges of an object's polygons


def outline(polygons: Sequence[Sequence[float]], height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Returns the pixels inside of any of COCO's polygons, each a list of x, y, x, y, … in px.

    Raises:
        UserError: a polygon has fewer than three corners, or they lie absurdly far apart or outside.
    """
    from pycocotools import mask  # compiled; few runs need it

    corners = [np.asarray(polygon, float).reshape(-1, 2) for polygon in polygons]
    if not corners or any(len(polygon) < 3 for polygon in corners):
        raise UserError(f"expected polygons of three corners or more, found {polygons}; correct the annotations")
    steps = (np.abs(np.diff(polygon, axis=0, append=polygon[:1])).max(axis=1).sum() for polygon in corners)
    # The package counts along the edges in numbers of 32 bits, unchecked.
    if not sum(steps) <= MAX_OUTLINE_PX or max(np.abs(polygon).max() for polygon in corners) > MAX_OUTLINE_PX:
        raise UserError(f"expected outlines of at most {MAX_OUTLINE_PX} px, found longer ones; correct the annotations")
    if not 0 < height * width <= MAX_PIXELS:
        raise UserError(f"expected at most {MAX_PIXELS} pixels, found {width} x {height}; correct the annotations")
    shapes: Any = [polygon.ravel().tolist() for polygon in corners]  # which its types do not know as lists of lists
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it does not know the copy keyword of NumPy 2 yet
        return mask.decode(mask.merge(mask.frPyObjects(shapes, height, width))).astype(bool)
