"""Traces pixel masks to polygons along pixel edges; rasterised, they cover exactly the same pixels."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from jaxtyping import Bool

from mtl_jax.data.formats.records import Polygon

Point = tuple[int, int]


def polygons_of(pixels: Bool[np.ndarray, "height width"]) -> tuple[Polygon, ...]:
    """Returns a polygon for each connected component; holes are attached by bridges of zero width.

    Args:
        pixels: mask of the object; pixels that touch only at a corner belong to separate components.
    """
    loops = [_remove_collinear(loop) for loop in _loops(_edges(pixels))]
    outer = [loop for loop in loops if _area(loop) > 0]
    with_holes = list(outer)
    for hole in (loop for loop in loops if _area(loop) < 0):
        index = min((i for i, loop in enumerate(outer) if _contains(loop, hole[0])), key=lambda i: _area(outer[i]))
        with_holes[index] = _bridge_hole(with_holes[index], hole)
    return tuple(tuple((float(x), float(y)) for x, y in loop) for loop in with_holes)


def _edges(pixels: np.ndarray) -> dict[Point, list[Point]]:
    """Returns corner -> next corners along boundary edges, with the inside always on the same side."""
    padded = np.pad(pixels, 1).astype(np.int8)
    following: dict[Point, list[Point]] = defaultdict(list)
    across = np.diff(padded, axis=0)[:, 1:-1]  # between a row and the next
    for y, x in zip(*(indices.tolist() for indices in np.nonzero(across)), strict=True):
        ends = ((x, y), (x + 1, y)) if across[y, x] > 0 else ((x + 1, y), (x, y))
        following[ends[0]].append(ends[1])
    along = np.diff(padded, axis=1)[1:-1]
    for y, x in zip(*(indices.tolist() for indices in np.nonzero(along)), strict=True):
        ends = ((x, y + 1), (x, y)) if along[y, x] > 0 else ((x, y), (x, y + 1))
        following[ends[0]].append(ends[1])
    return following


def _loops(following: dict[Point, list[Point]]) -> list[list[Point]]:
    loops = []
    for start in sorted(following, key=lambda point: (point[1], point[0])):
        while following[start]:
            loop, point = [start], following[start].pop()
            while point != start:
                ends, before = following[point], loop[-1]
                loop.append(point)
                # Where components touch at a corner, turning towards the inside keeps them separate.
                end = max(ends, key=lambda end: _turn(before, point, end))
                ends.remove(end)
                point = end
            loops.append(loop)
    return loops


def _turn(before: Point, corner: Point, end: Point) -> int:
    return (corner[0] - before[0]) * (end[1] - corner[1]) - (corner[1] - before[1]) * (end[0] - corner[0])


def _remove_collinear(loop: list[Point]) -> list[Point]:
    """Removes corners on straight lines."""
    return [
        point
        for before, point, after in zip((loop[-1], *loop[:-1]), loop, (*loop[1:], loop[0]), strict=True)
        if _turn(before, point, after)
    ]


def _area(loop: list[Point]) -> int:
    """Returns twice the signed area, negative for a hole."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(loop, (*loop[1:], loop[0]), strict=True))


def _contains(loop: list[Point], corner: Point) -> bool:
    """Returns whether a loop contains a point just inside a hole's first corner."""
    x, y = corner[0] + 0.5, corner[1] + 0.5
    crossings = sum(
        (y0 > y) != (y1 > y) and x0 > x for (x0, y0), (_, y1) in zip(loop, (*loop[1:], loop[0]), strict=True)
    )
    return crossings % 2 == 1


def _bridge_hole(loop: list[Point], hole: list[Point]) -> list[Point]:
    """Inserts a hole into a loop, by a bridge to the nearest corner."""
    start = hole[0]
    nearest = min(range(len(loop)), key=lambda i: abs(loop[i][0] - start[0]) + abs(loop[i][1] - start[1]))
    return [*loop[: nearest + 1], *hole, start, *loop[nearest:]]
