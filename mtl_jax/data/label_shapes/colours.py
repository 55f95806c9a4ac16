"""Colours of classes in pictures of labels."""

from __future__ import annotations

import colorsys

OPACITY = 0.5  # of a mask
GOLDEN = 0.618  # turns of the colour circle between two classes: neighbours differ most


def colour(index: int) -> tuple[int, int, int]:
    """Returns the RGB colour of a class; black of the first class of masks, which is mostly the background."""
    red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN % 1.0, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
