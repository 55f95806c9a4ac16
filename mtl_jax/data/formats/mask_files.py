"""Mask files in three encodings: class indices, colours, and one file for each class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer

from mtl_jax.data.images import Decoded, read_image
from mtl_jax.data.masks import distinct, mask_dtype
from mtl_jax.data.pixel_labels import decode_mask, follow_image, mask_values
from mtl_jax.data.sources.base import missing
from mtl_jax.errors import UserError

Colour = tuple[int, int, int]
Mask = Integer[np.ndarray, "height width"]


class NumberMask(NamedTuple):
    """A mask file of class indices."""

    file: Path
    class_count: int
    binary: bool = False  # values are 0 and another one

    def read_pixels(self, image: Decoded, *, stored: bool) -> Mask:
        """Returns the upright mask; see `records.MaskFiles`."""
        if self.binary:
            mask = (mask_values(self.file) > 0).astype(np.uint8)
            return follow_image(mask, image, stored=stored, noun="mask", name=str(self.file))
        return decode_mask(self.file, image=image, class_count=self.class_count, stored=stored)


class ColourMask(NamedTuple):
    """A mask file whose colours denote classes."""

    file: Path
    values: Mapping[Colour, int]  # -1 is void
    class_count: int

    def read_pixels(self, image: Decoded, *, stored: bool) -> Mask:
        """Returns the upright mask; see `records.MaskFiles`."""
        codes = colour_codes(self.file)
        mask = np.zeros(codes.shape, mask_dtype(self.class_count))
        is_listed = np.zeros(codes.shape, bool)
        for (red, green, blue), value in self.values.items():
            pixels = codes == (red << 16) + (green << 8) + blue
            mask[pixels] = value if value >= 0 else missing(mask)
            is_listed |= pixels
        if not is_listed.all():
            y, x = (int(indices[0]) for indices in np.nonzero(~is_listed))
            raise UserError(
                f"{self.file}, pixel ({x}, {y}): expected a colour of the palette, found "
                f"{colour_of(int(codes[y, x]))}; add it to the palette's file"
            )
        return follow_image(mask, image, stored=stored, noun="mask", name=str(self.file))


class ClassMasks(NamedTuple):
    """Binary mask files, one for each class; nonzero pixels belong to the class."""

    files: tuple[tuple[Path, int], ...]  # file, class index
    class_count: int

    @property
    def file(self) -> Path:
        """The first file."""
        return self.files[0][0]

    def read_pixels(self, image: Decoded, *, stored: bool) -> Mask:
        """Returns the upright mask, smaller classes over larger ones; see `records.MaskFiles`."""
        width, height = image.header.upright_size
        mask = np.zeros((height, width), mask_dtype(self.class_count))
        class_pixels = []
        for file, value in self.files:
            pixels = (mask_values(file) > 0).astype(np.uint8)
            class_pixels.append((follow_image(pixels, image, stored=stored, noun="mask", name=str(file)) > 0, value))
        for pixels, value in sorted(class_pixels, key=lambda entry: int(entry[0].sum()), reverse=True):
            mask[pixels] = value
        return mask


def colour_codes(file: Path) -> Integer[np.ndarray, "height width"]:
    """Returns the colour of each stored pixel as an integer."""
    rgb = read_image(file).stored.astype(np.int32)
    return (rgb[..., 0] << 16) + (rgb[..., 1] << 8) + rgb[..., 2]


def colour_of(code: int) -> Colour:
    """Returns the colour of a code."""
    return code >> 16, (code >> 8) & 255, code & 255


def colours_in(file: Path) -> set[Colour]:
    """Returns the colours of a file."""
    return {colour_of(code) for code in distinct(colour_codes(file)).tolist()}
