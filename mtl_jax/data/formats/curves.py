"""Ellipses and rotated boxes as polygons."""

from __future__ import annotations

import math

from mtl_jax.data.formats.records import Polygon

CORNERS = 64  # of the polygon of an ellipse; its error is 0.1 % of the radius


def ellipse(x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0.0) -> Polygon:
    """Returns the polygon of an ellipse.

    Args:
        x: x of the centre.
        y: y of the centre.
        radius_x: radius along the rotated axis.
        radius_y: radius across it.
        degrees: clockwise rotation.
    """
    angles = [2 * math.pi * i / CORNERS for i in range(CORNERS)]
    return rotate(
        tuple((x + radius_x * math.cos(angle), y + radius_y * math.sin(angle)) for angle in angles), degrees, (x, y)
    )


def rotate(polygon: Polygon, degrees: float, around: tuple[float, float] | None = None) -> Polygon:
    """Rotates a polygon clockwise, by default around the mean of its corners."""
    if not degrees:
        return polygon
    if around is None:
        xs, ys = zip(*polygon, strict=True)
        around = (sum(xs) / len(xs), sum(ys) / len(ys))
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    centred = [(x - around[0], y - around[1]) for x, y in polygon]
    return tuple((around[0] + x * cos - y * sin, around[1] + x * sin + y * cos) for x, y in centred)
