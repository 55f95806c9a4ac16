"""Small pictures of images with their labels drawn in, as JPEG files."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
from jaxtyping import UInt8

from mtl_jax.data.label_shapes import shape_of

SIDE_PX = 256  # longer side of a picture
QUALITY = 80  # of JPEG


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
    picture = shape_of(fields).draw(cv2.resize(image, size, interpolation=cv2.INTER_AREA), fields, scale)
    _, file = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return file.tobytes(), size
