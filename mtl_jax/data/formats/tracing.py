"""Outlines of pixels, as polygons along their edges: painted again, they cover the same pixels."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from jaxtyping import Bool

from mtl_jax.data.formats.records import Polygon

Point = tuple[int, int]


def polygons_of(pixels: Bool[np.ndarray, "height width"]) -> tuple[Polygon, ...]:
    """Returns one polygon for each part of some pixels; its holes hang on it by lines without width.

    Args:
        pixels: that belong to the object; those that touch at a corner alone are parts of their own.
    """
    loops = [_straightened(loop) for loop in _loops(_edges(pixels))]
    outer = [loop for loop in loops if _area(loop) > 0]
    with_holes = list(outer)
    for hole in (loop for loop in loops if _area(loop) < 0):
        around = min((i for i, loop in enumerate(outer) if _contains(loop, hole[0])), key=lambda i: _area(outer[i]))
        with_holes[around] = _bridged(with_holes[around], hole)
    return tuple(tuple((float(x), float(y)) for x, y in loop) for loop in with_holes)


def _edges(pixels: np.ndarray) -> dict[Point, list[Point]]:
    """Corner -> the next ones along an edge between inside and outside, with the inside on one hand."""
    padded = np.pad(pixels, 1).astype(np.int8)
    following: dict[Point, list[Point]] = defaultdict(list)
    across = np.diff(padded, axis=0)[:, 1:-1]  # between a row and the next
    for y, x in zip(*(places.tolist() for places in np.nonzero(across)), strict=True):
        ends = ((x, y), (x + 1, y)) if across[y, x] > 0 else ((x + 1, y), (x, y))
        following[ends[0]].append(ends[1])
    along = np.diff(padded, axis=1)[1:-1]
    for y, x in zip(*(places.tolist() for places in np.nonzero(along)), strict=True):
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
                # Where parts touch at a corner, the way that turns towards the inside keeps them apart.
                end = max(ends, key=lambda end: _turn(before, point, end))
                ends.remove(end)
                point = end
            loops.append(loop)
    return loops


def _turn(before: Point, corner: Point, end: Point) -> int:
    return (corner[0] - before[0]) * (end[1] - corner[1]) - (corner[1] - before[1]) * (end[0] - corner[0])


def _straightened(loop: list[Point]) -> list[Point]:
    """Leaves out the corners on a straight line."""
    return [
        point
        for before, point, after in zip((loop[-1], *loop[:-1]), loop, (*loop[1:], loop[0]), strict=True)
        if _turn(before, point, after)
    ]


def _area(loop: list[Point]) -> int:
    """Twice the area; negative of a hole."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(loop, (*loop[1:], loop[0]), strict=True))


def _contains(loop: list[Point], corner: Point) -> bool:
    """Whether a point a little inside of a hole's first corner lies in a loop."""
    x, y = corner[0] + 0.5, corner[1] + 0.5
    crossings = sum(
        (y0 > y) != (y1 > y) and x0 > x for (x0, y0), (_, y1) in zip(loop, (*loop[1:], loop[0]), strict=True)
    )
    return crossings % 2 == 1


def _bridged(loop: list[Point], hole: list[Point]) -> list[Point]:
    """Goes around a hole on the way around a loop."""
    start = hole[0]
    nearest = min(range(len(loop)), key=lambda i: abs(loop[i][0] - start[0]) + abs(loop[i][1] - start[1]))
    return [*loop[: nearest + 1], *hole, start, *loop[nearest:]]
