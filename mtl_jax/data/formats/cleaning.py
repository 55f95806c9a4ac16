"""Cleans objects: scales, rotates and clips them to the upright image, and counts what is dropped."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mtl_jax.data import orientation
from mtl_jax.data.formats import painting
from mtl_jax.data.formats.entries import Entry, RawShape
from mtl_jax.data.formats.records import Corners, Polygon, Shape
from mtl_jax.data.images import turn_upright
from mtl_jax.data.orientation import Header
from mtl_jax.data.sources.base import counted
from mtl_jax.data.sources.coco_boxes import LARGEST_SHARE, Boxes
from mtl_jax.errors import UserError

DECIMALS = 2  # of coordinates in px; makes a round trip through relative coordinates exact
MAX_CORNERS = 100_000  # of a polygon

Size = tuple[int, int]  # width, height, px
Scale = Callable[[Entry, Size], list[RawShape]]


def scale_of(entries: Sequence[Entry]) -> tuple[Scale, str | None]:
    """Decides from all objects whether coordinates are pixels or relative to the image, because exporters differ.

    Args:
        entries: entries with objects; `shares` is the convention of the format.

    Returns:
        A function that converts the objects of an entry to pixels, and a warning if the numbers contradict the format.
    """
    by_kind: dict[bool, list[float]] = {True: [], False: []}
    for entry in entries:
        by_kind[entry.shares] += [_largest(raw_shape) for raw_shape in entry.shapes or () if raw_shape.runs is None]
    shares = [number for number in by_kind[True] if math.isfinite(number)]
    pixels = [number for number in by_kind[False] if math.isfinite(number)]
    are_pixels = sum(number > LARGEST_SHARE for number in shares) * 2 > len(shares)
    are_shares = bool(pixels) and max(pixels) <= LARGEST_SHARE
    note = None
    if are_pixels:
        note = (
            f"{sum(number > LARGEST_SHARE for number in shares)} of {counted(len(shares), 'objects')} have coordinates "
            f"above 1 (largest: {max(shares):g}), where shares of the image belong: all are read as pixels."
        )
    if are_shares:
        note = (
            f"no coordinate of {counted(len(pixels), 'objects')} is above {LARGEST_SHARE:g}, smaller than a pixel: all "
            "are read as shares of the image."
        )

    def scale(entry: Entry, size: Size) -> list[RawShape]:
        is_share = not are_pixels if entry.shares else are_shares
        return [_to_pixels(raw_shape, size) if is_share else raw_shape for raw_shape in entry.shapes or ()]

    return scale, note


def _largest(raw_shape: RawShape) -> float:
    numbers = [value for polygon in raw_shape.polygons for point in polygon for value in point] + list(
        raw_shape.xyxy or ()
    )
    return max(map(abs, numbers), default=math.nan)


def _to_pixels(raw_shape: RawShape, size: Size) -> RawShape:
    width, height = size
    polygons = tuple(tuple((x * width, y * height) for x, y in polygon) for polygon in raw_shape.polygons)
    box = raw_shape.xyxy
    xyxy = None if box is None else (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    return RawShape(raw_shape.label, xyxy, polygons, raw_shape.runs, raw_shape.crowd)


class Cleaner:
    """Cleans the objects of images, and counts dropped and changed ones.

    Args:
        image_count: number of images.
    """

    def __init__(self, image_count: int) -> None:
        self._boxes = Boxes(image_count)
        self._numbers: dict[str, int] = {}
        self._outlines: Counter[str] = Counter()
        self._labelled: list[int] = []

    def clean(
        self, image: int, raw_shapes: Sequence[RawShape], header: Header, *, stored: bool, location: str
    ) -> tuple[Shape, ...]:
        """Returns the valid objects of an image.

        Args:
            image: index of the image.
            raw_shapes: its objects, in pixels.
            header: header of the image.
            stored: whether coordinates refer to the stored pixels.
            location: file and position of the objects, for errors.

        Raises:
            UserError: an outline is too long, or run lengths have another size than the image.
        """
        self._labelled.append(image)
        boxes = self._boxes.of_image[image]
        shapes: list[Shape] = []
        for raw_shape in raw_shapes:
            polygons, runs, xyxy = self._upright(raw_shape, header, stored, location)
            if xyxy is None:
                self._boxes.dropped["degenerate"] += 1
                continue
            box_count = len(boxes)
            left, top, right, bottom = xyxy
            annotation = {"bbox": [left, top, right - left, bottom - top], "iscrowd": int(raw_shape.crowd)}
            annotation |= {} if raw_shape.area is None else {"area": raw_shape.area}
            label = self._numbers.setdefault(raw_shape.label, len(self._numbers))
            self._boxes.add(annotation, image=image, label=label, size=header.upright_size, location=location)
            if len(boxes) > box_count:
                box = boxes[-1]
                shapes.append(Shape(raw_shape.label, _round_box(box.xyxy), polygons, runs, box.crowd, box.area))
        return tuple(shapes)

    def _upright(
        self, raw_shape: RawShape, header: Header, stored: bool, location: str
    ) -> tuple[tuple[Polygon, ...], painting.Runs | None, Corners | None]:
        """Returns outlines and box in the upright image; None as box of an empty object."""
        runs = None
        if raw_shape.runs is not None:
            size = (header.width, header.height) if stored else header.upright_size
            if raw_shape.runs.size != size:
                raise UserError(
                    f"{location}: expected run lengths of {size[0]} x {size[1]} px, found {raw_shape.runs.size}"
                )
            pixels = painting.pixels_of(raw_shape.runs)
            upright = turn_upright(pixels, header.orientation) if stored else pixels
            runs = painting.runs_of(upright) if stored else raw_shape.runs
            bounds = painting.bounds(upright)
            if bounds is None:
                return (), None, None
        else:
            bounds = None
        upright_polygons = [_turn(polygon, header) if stored else polygon for polygon in raw_shape.polygons]
        polygons = tuple(self._valid_polygons(upright_polygons, header.upright_size, location))
        if raw_shape.xyxy is not None:
            xyxy = _turn_box(raw_shape.xyxy, header) if stored else raw_shape.xyxy
        else:
            xyxy = bounds or _bounding_box(polygons)
        return polygons, runs, None if xyxy is None else _round_box(xyxy)

    def _valid_polygons(self, polygons: Sequence[Polygon], size: Size, location: str) -> Iterator[Polygon]:
        for polygon in polygons:
            if len(polygon) > MAX_CORNERS:
                raise UserError(
                    f"{location}: expected at most {MAX_CORNERS} corners of a polygon, found {len(polygon)}"
                )
            clipped = _clip(polygon, size)
            if len(clipped) < 3:
                self._outlines["polygons dropped"] += 1
                continue
            rounded = _round_points(clipped)
            self._outlines["polygons clipped"] += clipped is not polygon and rounded != _round_points(polygon)
            yield rounded

    def counts(self) -> dict[str, int]:
        """Returns the counts by name."""
        return {**self._boxes.counts(self._labelled), **self._outlines} if self._labelled else {}

    def notes(self, path: Path) -> list[str]:
        """Returns warnings.

        Args:
            path: path of the dataset.
        """
        return list(self._boxes.notes(path)) if self._labelled else []


def _clip(polygon: Polygon, size: Size) -> Polygon:
    """Clips a polygon to the image; returns an empty one if a corner is not finite."""
    corners = np.array(polygon, float).reshape(-1, 2)
    if not np.isfinite(corners).all():
        return ()
    if len(corners) and (corners.min(axis=0) >= 0).all() and (corners.max(axis=0) <= size).all():
        return polygon
    return painting.clip_polygon(polygon, size)


def _round_points(polygon: Polygon) -> Polygon:
    return tuple(map(tuple, np.round(np.array(polygon, float), DECIMALS).tolist()))


def _round_box(xyxy: Corners) -> Corners:
    left, top, right, bottom = (round(side, DECIMALS) for side in xyxy)
    return left, top, right, bottom


def _bounding_box(polygons: Sequence[Polygon]) -> Corners | None:
    corners = [point for polygon in polygons for point in polygon]
    if not corners:
        return None
    xs, ys = zip(*corners, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _turn(polygon: Polygon, header: Header) -> Polygon:
    return tuple(map(tuple, orientation.turn_points(np.array(polygon, float).reshape(-1, 2), header).tolist()))


def _turn_box(xyxy: Corners, header: Header) -> Corners:
    (x0, y0), (x1, y1) = _turn((xyxy[:2], xyxy[2:]), header)
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
