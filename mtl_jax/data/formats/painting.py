"""Rasterisation of polygons and run lengths into masks, and run-length encoding of masks."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Integer

from mtl_jax.data.formats.records import Corners, Polygon, Runs, Shape
from mtl_jax.data.images import MAX_PIXELS
from mtl_jax.data.masks import mask_dtype
from mtl_jax.data.outlines import outline
from mtl_jax.errors import UserError


def check_runs(counts: Sequence[int], size: tuple[int, int], location: str) -> Runs:
    """Checks that run lengths fill an image exactly.

    Args:
        counts: column-wise lengths, starting with background.
        size: width and height, px.
        location: file and position, for errors.

    Raises:
        UserError: the run lengths do not fill the image.
    """
    width, height = size
    if not 0 < width * height <= MAX_PIXELS or min(size) <= 0:
        raise UserError(f"{location}: expected run lengths of an image, found a size of {width} x {height} px")
    if min(counts, default=0) < 0 or sum(counts) != width * height:
        raise UserError(
            f"{location}: expected run lengths that add up to {width} x {height} px, found {sum(counts)}; correct "
            "the file"
        )
    return Runs(tuple(counts), size)


def parse_counts(packed: str) -> list[int]:
    """Decodes COCO's compressed run lengths: 5 bits per letter, delta-coded from the third length on.

    Raises:
        ValueError: the text is malformed.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in packed:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 60:
            raise ValueError(f"no letter of run lengths: {letter!r}")
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:  # more follows
            continue
        if code & 0x10:  # negative
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("run lengths that end too early")
    return counts


def pixels_of(runs: Runs) -> Bool[np.ndarray, "height width"]:
    """Decodes run lengths to pixels."""
    width, height = runs.size
    is_inside = np.arange(len(runs.counts)) % 2 == 1
    return np.repeat(is_inside, runs.counts).reshape(width, height).T


def runs_of(pixels: Bool[np.ndarray, "height width"]) -> Runs:
    """Encodes pixels as run lengths."""
    column_by_column = pixels.T.ravel()
    changes = np.flatnonzero(np.diff(column_by_column, prepend=False))
    counts = np.diff(np.concatenate([[0], changes, [column_by_column.size]]))
    return Runs(tuple(counts.tolist()), (pixels.shape[1], pixels.shape[0]))


def bounds(pixels: Bool[np.ndarray, "height width"]) -> Corners | None:
    """Returns the bounding box of pixels; None without pixels."""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if not rows.size:
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def pixels_covered_by(shape: Shape, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Rasterises an object: its runs or polygons, or without them its box."""
    width, height = size
    if shape.runs is not None:
        return pixels_of(shape.runs)
    if shape.polygons:
        flat = [[value for point in polygon for value in point] for polygon in shape.polygons]
        return outline(flat, height, width)
    pixels = np.zeros((height, width), bool)
    left, top, right, bottom = (round(side) for side in shape.xyxy)
    pixels[top:bottom, left:right] = True
    return pixels


def paint(
    shapes: Sequence[Shape], size: tuple[int, int], values: Mapping[str, int]
) -> Integer[np.ndarray, "height width"]:
    """Rasterises objects into a mask, largest first.

    Args:
        shapes: objects.
        size: width and height of the image, px.
        values: label -> value of its pixels; objects of other labels are skipped. Remaining pixels are 0.
    """
    width, height = size
    mask = np.zeros((height, width), mask_dtype(max(values.values(), default=0) + 1))
    for shape in sorted(shapes, key=box_area, reverse=True):
        if shape.label in values:
            mask[pixels_covered_by(shape, size)] = values[shape.label]
    return mask


def box_area(shape: Shape) -> float:
    """Returns the area of an object's box, px²."""
    left, top, right, bottom = shape.xyxy
    return (right - left) * (bottom - top)


def clip_polygon(polygon: Polygon, size: tuple[int, int]) -> Polygon:
    """Clips a polygon to the image; returns an empty one if nothing remains.

    References:
        Sutherland, Hodgman, "Reentrant Polygon Clipping", 1974.
    """
    width, height = size
    for axis, sign, limit in ((0, 1, 0.0), (0, -1, float(width)), (1, 1, 0.0), (1, -1, float(height))):
        polygon = _clip_at(polygon, axis, sign, limit)
    return polygon


def _clip_at(polygon: Polygon, axis: int, sign: int, limit: float) -> Polygon:
    """Clips a polygon at a limit along an axis; keeps the side above it, or below it with sign -1."""
    is_in = functools.partial(_is_beyond, axis=axis, sign=sign, limit=limit)
    if all(map(is_in, polygon)):
        return polygon
    corners: list[tuple[float, float]] = []
    for before, point in zip((*polygon[-1:], *polygon[:-1]), polygon, strict=True):
        if is_in(before) != is_in(point):
            share = (limit - before[axis]) / (point[axis] - before[axis])
            across = before[1 - axis] + share * (point[1 - axis] - before[1 - axis])
            corners.append((limit, across) if axis == 0 else (across, limit))
        if is_in(point):
            corners.append(point)
    return tuple(corners)


def _is_beyond(point: tuple[float, float], *, axis: int, sign: int, limit: float) -> bool:
    return sign * (point[axis] - limit) >= 0
