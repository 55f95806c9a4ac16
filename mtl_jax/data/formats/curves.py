"""Ellipses and turned boxes as polygons."""

from __future__ import annotations

import math

from mtl_jax.data.formats.records import Polygon

CORNERS = 64  # of a polygon that stands for an ellipse: 0.1 % of the radius away from it


def ellipse(x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0.0) -> Polygon:
    """Returns a polygon along an ellipse.

    Args:
        x: of the centre.
        y: of the centre.
        radius_x: along the axis that is turned.
        radius_y: across it.
        degrees: by which it is turned clockwise.
    """
    angles = [2 * math.pi * i / CORNERS for i in range(CORNERS)]
    return rotated(
        tuple((x + radius_x * math.cos(angle), y + radius_y * math.sin(angle)) for angle in angles), degrees, (x, y)
    )


def rotated(polygon: Polygon, degrees: float, around: tuple[float, float] | None = None) -> Polygon:
    """Returns a polygon turned clockwise, by default around the middle of its corners."""
    if not degrees:
        return polygon
    if around is None:
        xs, ys = zip(*polygon, strict=True)
        around = (sum(xs) / len(xs), sum(ys) / len(ys))
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    centred = [(x - around[0], y - around[1]) for x, y in polygon]
    return tuple((around[0] + x * cos - y * sin, around[1] + x * sin + y * cos) for x, y in centred)
