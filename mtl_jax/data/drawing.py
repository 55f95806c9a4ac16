"""Small pictures of images with their labels drawn in, as JPEG files."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from mtl_jax.data.sources.base import Fields, missing

SIDE_PX = 256  # longer side of a picture
QUALITY = 80  # of JPEG
OPACITY = 0.5  # of a mask
GOLDEN = 0.618  # turns of the colour circle between two classes: neighbours differ most


def draw(
    image: UInt8[np.ndarray, "height width 3"], fields: Mapping[str, np.ndarray], *, side: int = SIDE_PX
) -> tuple[bytes, tuple[int, int]]:
    """Draws a label over an image: masks in colours, boxes as frames, depths as shades; what is of the whole image is
    not drawn.

    Args:
        image: RGB.
        fields: of one label, as a source gives them.
        side: longer side of the picture, px.

    Returns:
        The JPEG file, and its width and height.
    """
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    for name, pencil in (("mask", _mask), ("depth", _depth), ("boxes_xyxy", _boxes)):
        if name in fields:
            picture = pencil(picture, fields, size, scale)
    _, file = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return file.tobytes(), size


def colour(index: int) -> tuple[int, int, int]:
    """Returns the RGB colour of a class; black of the first class of masks, which is mostly the background."""
    red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN % 1.0, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def caption(fields: Fields, names: Sequence[str]) -> str:
    """Returns what a label says in words: the class, the tags that are true, the number, or the classes that are drawn.

    Args:
        fields: of one label.
        names: of its classes.
    """
    if "value" in fields:
        return f"{float(fields['value']):.4g}"
    if "mask" in fields:
        shown = [int(value) for value in np.unique(fields["mask"]) if value != missing(fields["mask"])]
    elif "depth" in fields:
        return "depth"
    elif np.ndim(fields["label"]) == 1 and "boxes_xyxy" not in fields:
        shown = np.flatnonzero(fields["label"] > 0).tolist()
    else:
        shown = np.unique(fields["label"]).tolist()
    return ", ".join(names[index] for index in shown if 0 <= index < len(names)) or "nothing"


def _mask(picture: np.ndarray, fields: Mapping[str, np.ndarray], size: tuple[int, int], scale: float) -> np.ndarray:
    del scale
    mask: Any = cv2.resize(fields["mask"], size, interpolation=cv2.INTER_NEAREST)
    palette = np.array([colour(value) for value in range(int(mask.max()) + 1)], np.uint8)
    shown = (mask != missing(fields["mask"])) & (mask > 0)
    mixed = cv2.addWeighted(picture, 1 - OPACITY, palette[mask], OPACITY, 0)
    return np.where(shown[..., None], mixed, picture)


def _depth(picture: np.ndarray, fields: Mapping[str, np.ndarray], size: tuple[int, int], scale: float) -> np.ndarray:
    del scale
    depth = cv2.resize(fields["depth"], size, interpolation=cv2.INTER_NEAREST)
    known = np.isfinite(depth)
    if not known.any():
        return picture
    shade = np.where(known, 255 * (1 - depth / max(float(depth[known].max()), 1e-6)), 0).astype(np.uint8)
    return np.where(known[..., None], np.repeat(shade[..., None], 3, axis=-1), picture)


def _boxes(picture: np.ndarray, fields: Mapping[str, np.ndarray], size: tuple[int, int], scale: float) -> np.ndarray:
    del size
    drawn = np.ascontiguousarray(picture)
    for box, label in zip(fields["boxes_xyxy"], fields["label"], strict=True):
        if np.isfinite(box).all():
            left, top, right, bottom = (round(float(edge) * scale) for edge in box)
            cv2.rectangle(drawn, (left, top), (right - 1, bottom - 1), colour(int(label)), 2)
    return drawn
