"""Places an image, a mask or a depth map into an output by scale and offset: letterbox, resize, crop and mirror."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8

PADDING_GREY = 114  # of 255: near the mean of natural images, as the YOLO family pads

_WHOLE = 1e-6  # px: what is nearer to a whole pixel is one
_SHRINK_BELOW = 0.5  # a bilinear warp skips pixels below this scale, so the image is averaged down first

cv2.setNumThreads(1)  # the loader has threads of its own; OpenCV's pool would fight with them and with XLA


class Placement(NamedTuple):
    """Placement of an image: `output_px = image_px * scale + offset`, in continuous coordinates.

    Pixel `i` covers `[i, i + 1)`. A negative scale mirrors.
    """

    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float


def fit(height: int, width: int, *, size: tuple[int, int], crop: bool = False) -> Placement:
    """Returns the letterbox: the whole image, aspect kept, centred in `size` (height, width).

    With `crop`, the image fills `size`, and what stands out of it is left away.
    """
    scale = (max if crop else min)(size[0] / height, size[1] / width)
    return Placement(scale, scale, (size[1] - width * scale) / 2, (size[0] - height * scale) / 2)


def stretch(height: int, width: int, *, size: tuple[int, int]) -> Placement:
    """Returns the plain resize: the whole image fills `size` (height, width), aspect not kept."""
    return Placement(size[1] / width, size[0] / height, 0.0, 0.0)


def mirror(placement: Placement, width: int) -> Placement:
    """Mirrors an output of `width` px left-right."""
    return placement._replace(scale_x=-placement.scale_x, offset_x=width - placement.offset_x)


def snapped(placement: Placement, height: int, width: int, *, size: tuple[int, int]) -> Placement:
    """Returns the nearest placement that takes whole pixels of the image to whole pixels of the output.

    What is visible is then a resized crop, which `warp` computes several times as fast. Borders move by half a pixel at
    most, and scales change accordingly.

    Args:
        placement: that shows some of the image; another one stays as it is.
        height: of the image, px.
        width: of the image, px.
        size: of the output, (height, width) px.
    """
    rows = _spans(placement.scale_y, placement.offset_y, height, size[0])
    columns = _spans(placement.scale_x, placement.offset_x, width, size[1])
    if rows is None or columns is None:
        return placement
    scale_y, offset_y = rows.line(placement.scale_y < 0, height)
    scale_x, offset_x = columns.line(placement.scale_x < 0, width)
    return Placement(scale_x, scale_y, offset_x, offset_y)


class _Spans(NamedTuple):
    """What is visible of an axis, in pixels of the image from its first edge in the output on, and where it goes."""

    first: int
    last: int
    output_first: int
    output_last: int

    def pixels(self, mirrored: bool, length: int) -> slice:
        """What is visible, in pixels of the image."""
        return slice(length - self.last, length - self.first) if mirrored else slice(self.first, self.last)

    def line(self, mirrored: bool, length: int) -> tuple[float, float]:
        """Scale and offset that take the one to the other."""
        scale = (self.output_last - self.output_first) / (self.last - self.first)
        start = self.output_first - self.first * scale
        return (-scale, start + length * scale) if mirrored else (scale, start)


def _spans(scale: float, offset: float, length: int, output_length: int) -> _Spans | None:
    """The nearest whole spans; None where nothing is visible."""
    size, start = abs(scale), min(offset, offset + length * scale)
    stop = start + length * size
    spans = _Spans(
        max(0, round(-start / size)),
        min(length, round((output_length - start) / size)),
        max(0, round(start)),
        min(output_length, round(stop)),
    )
    return spans if spans.last > spans.first and spans.output_last > spans.output_first else None


def warp(
    image: UInt8[np.ndarray, "height width 3"], placement: Placement, *, size: tuple[int, int]
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Moves an image (bilinear, averaged first where it shrinks a lot) and fills the rest with grey."""
    height, width = image.shape[:2]
    if (crop := _resized_crop(image, placement, size)) is not None:
        return crop
    image, shrunk = _shrunk(image, placement)
    # OpenCV counts from pixel centres, hence the halves.
    matrix = np.array(
        [
            [shrunk.scale_x, 0, shrunk.offset_x + shrunk.scale_x / 2 - 0.5],
            [0, shrunk.scale_y, shrunk.offset_y + shrunk.scale_y / 2 - 0.5],
        ]
    )
    warped = cv2.warpAffine(image, matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    _fill_margins(warped, placement, height, width, value=PADDING_GREY)
    return warped


def _resized_crop(image: np.ndarray, placement: Placement, size: tuple[int, int]) -> np.ndarray | None:
    """What `warp` returns for a placement as `snapped` returns it; None for another, or where it shrinks a lot."""
    height, width = image.shape[:2]
    rows = _spans(placement.scale_y, placement.offset_y, height, size[0])
    columns = _spans(placement.scale_x, placement.offset_x, width, size[1])
    if rows is None or columns is None or min(abs(placement.scale_x), abs(placement.scale_y)) < _SHRINK_BELOW:
        return None
    lines = (*columns.line(placement.scale_x < 0, width), *rows.line(placement.scale_y < 0, height))
    expected = (placement.scale_x, placement.offset_x, placement.scale_y, placement.offset_y)
    if any(abs(line - value) > _WHOLE for line, value in zip(lines, expected, strict=True)):
        return None
    crop = image[rows.pixels(placement.scale_y < 0, height), columns.pixels(placement.scale_x < 0, width)]
    shape = rows.output_last - rows.output_first, columns.output_last - columns.output_first
    resized = cv2.resize(crop, shape[::-1], interpolation=cv2.INTER_LINEAR)
    for axis, scale in enumerate((placement.scale_y, placement.scale_x)):
        if scale < 0:
            resized = cv2.flip(resized, axis)
    if shape == size:
        return resized
    warped = np.full((*size, image.shape[2]), PADDING_GREY, np.uint8)
    warped[rows.output_first : rows.output_last, columns.output_first : columns.output_last] = resized
    return warped


def warp_nearest(
    labels: Shaped[np.ndarray, "height width"], placement: Placement, *, size: tuple[int, int], missing: int | float
) -> Shaped[np.ndarray, "new_height new_width"]:
    """Moves the pixels' labels by nearest neighbour, which mixes none with another; `missing` is what lies outside."""
    rows = _nearest(placement.scale_y, placement.offset_y, labels.shape[0], size[0])
    columns = _nearest(placement.scale_x, placement.offset_x, labels.shape[1], size[1])
    warped = labels[rows][:, columns]
    _fill_margins(warped, placement, *labels.shape, value=missing)
    return warped


def _shrunk(image: np.ndarray, placement: Placement) -> tuple[np.ndarray, Placement]:
    """Averages an image down by whole factors until the warp's scale is at least `_SHRINK_BELOW`."""
    height, width = image.shape[:2]
    scale_x, scale_y = abs(placement.scale_x), abs(placement.scale_y)
    if min(scale_x, scale_y) >= _SHRINK_BELOW:
        return image, placement
    new_width = max(1, round(width / max(1, int(1 / scale_x))))
    new_height = max(1, round(height / max(1, int(1 / scale_y))))
    smaller = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_AREA)
    factor_x, factor_y = width / new_width, height / new_height
    return smaller, placement._replace(scale_x=placement.scale_x * factor_x, scale_y=placement.scale_y * factor_y)


def _fill_margins(output: np.ndarray, placement: Placement, height: int, width: int, *, value: int | float) -> None:
    """Writes a value where an output shows nothing of an image of this height and width."""
    for margin in _margins(placement.scale_y, placement.offset_y, height, output.shape[0]):
        output[margin] = value
    for margin in _margins(placement.scale_x, placement.offset_x, width, output.shape[1]):
        output[:, margin] = value


def _margins(scale: float, offset: float, length: int, output_length: int) -> tuple[slice, slice]:
    """The output's rows (or columns) before and after the image: those whose centre is not on it."""
    start, stop = sorted((offset, offset + length * scale))
    # A centre on the image's first edge is on it, one on its last edge is not; mirrored, these edges change places.
    first, last = (math.ceil(edge - 0.5) if scale > 0 else math.floor(edge - 0.5) + 1 for edge in (start, stop))
    return slice(0, max(0, first)), slice(max(0, last), output_length)


def _nearest(scale: float, offset: float, length: int, output_length: int) -> np.ndarray:
    """For each output row (or column), the input's that its centre falls on, or is nearest to."""
    indices = np.floor((np.arange(output_length) + 0.5 - offset) / scale).astype(np.int64)
    return indices.clip(0, length - 1)
