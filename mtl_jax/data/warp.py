"""Places an image, a mask or a depth map into an output by scale and offset: letterbox, resize, crop and mirror."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8

PADDING_GREY = 114  # of 255: near the mean of natural images, as the YOLO family pads

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


def warp(
    image: UInt8[np.ndarray, "height width 3"], placement: Placement, *, size: tuple[int, int]
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Moves an image (bilinear, averaged first where it shrinks a lot) and fills the rest with grey."""
    height, width = image.shape[:2]
    rows = _margins(placement.scale_y, placement.offset_y, height, size[0])
    columns = _margins(placement.scale_x, placement.offset_x, width, size[1])
    image, placement = _shrunk(image, placement)
    # OpenCV counts from pixel centres, hence the halves.
    matrix = np.array(
        [
            [placement.scale_x, 0, placement.offset_x + placement.scale_x / 2 - 0.5],
            [0, placement.scale_y, placement.offset_y + placement.scale_y / 2 - 0.5],
        ]
    )
    warped = cv2.warpAffine(image, matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    for margin in rows:
        warped[margin] = PADDING_GREY
    for margin in columns:
        warped[:, margin] = PADDING_GREY
    return warped


def warp_nearest(
    labels: Shaped[np.ndarray, "height width"], placement: Placement, *, size: tuple[int, int], missing: int | float
) -> Shaped[np.ndarray, "new_height new_width"]:
    """Moves the pixels' labels by nearest neighbour, which mixes none with another; `missing` is what lies outside."""
    rows, row_inside = _nearest(placement.scale_y, placement.offset_y, labels.shape[0], size[0])
    columns, column_inside = _nearest(placement.scale_x, placement.offset_x, labels.shape[1], size[1])
    warped = labels[rows][:, columns]
    warped[~row_inside] = missing
    warped[:, ~column_inside] = missing
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


def _margins(scale: float, offset: float, length: int, output_length: int) -> tuple[slice, slice]:
    """The output's rows (or columns) before and after the image: those whose centre is not on it."""
    start, stop = sorted((offset, offset + length * scale))
    first, last = int(np.ceil(start - 0.5)), int(np.ceil(stop - 0.5))
    return slice(0, max(0, first)), slice(max(0, last), output_length)


def _nearest(scale: float, offset: float, length: int, output_length: int) -> tuple[np.ndarray, np.ndarray]:
    """For each output row (or column), the input's that its centre falls on, and whether there is one."""
    indices = np.floor((np.arange(output_length) + 0.5 - offset) / scale).astype(np.int64)
    return indices.clip(0, length - 1), (indices >= 0) & (indices < length)
