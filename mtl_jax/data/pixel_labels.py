"""Reads and writes masks and depth maps: one number for each pixel of an image."""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int, UInt8, UInt16
from PIL import Image

from mtl_jax.data.images import FORMATS, LOSSY, MAX_PIXELS, Decoded, name_of, open_image, turn_upright
from mtl_jax.data.masks import class_indices
from mtl_jax.errors import UserError


def decode_mask(
    file: str | Path | bytes,
    *,
    image: Decoded | None = None,
    class_count: int,
    void: Collection[int] | None = None,
    binary: bool = False,
    stored: bool = False,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> UInt8[np.ndarray, "height width"] | UInt16[np.ndarray, "height width"]:
    """Reads a mask of class indices from a palette or greyscale file.

    The mask follows its image: it is taken as upright, unless only the image's stored (unrotated) size fits
    it; then it is rotated with the image. A mask without any labelled pixel is accepted.

    Args:
      file: a path, or the bytes of a file.
      image: the image it belongs to; its size is checked where given.
      class_count: indices must be below it, or void; 0 checks nothing.
      void: values of pixels that nobody labelled; by default 255, or 65535 of more than 255 classes.
      binary: the values are 0 and 255, which stand for class 0 and class 1.
      stored: where the size fits both, the mask is as stored.
      name: what errors call it; the path by default.
      max_pixels: larger masks are refused before they are decoded.

    Returns:
      Class indices, `base.missing` where void: u8, or u16 of more than 255 classes.

    Raises:
      UserError: unreadable, in colour, of another size, or with an index outside the class table.
    """
    name = name_of(file, name)
    values = mask_values(file, name=name, max_pixels=max_pixels)
    mask = class_indices(values, class_count=class_count, void=void, binary=binary, name=name)
    return mask if image is None else follow_image(mask, image, stored=stored, noun="mask", name=name)


def mask_values(
    file: str | Path | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> Int[np.ndarray, "height width"]:
    """Reads a palette or greyscale file as the numbers that it holds.

    Raises:
      UserError: unreadable, in colour, or of a format that changes numbers.
    """
    name = name_of(file, name)
    image_file = open_image(file, name, max_pixels)
    if image_file.format in LOSSY:
        raise UserError(
            f"{name}: expected a mask of class indices, found a {image_file.format} file, whose numbers are not "
            "those that were saved; export the masks as PNG"
        )
    if image_file.mode not in ("P", "L", "1") and not image_file.mode.startswith("I"):
        raise UserError(
            f"{name}: expected a palette or greyscale mask of class indices, found mode {image_file.mode}; "
            "save class indices, not colours"
        )
    return np.asarray(image_file).astype(np.int64)


def decode_depth(
    file: str | Path | bytes,
    *,
    image: Decoded | None = None,
    levels_per_metre: float,
    stored: bool = False,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Float32[np.ndarray, "height width"]:
    """Reads a depth map from an 8- or 16-bit greyscale file: metres, NaN where it holds 0.

    The map follows its image as a mask does.

    Args:
      file: a path, or the bytes of a file.
      image: the image it belongs to; its size is checked where given.
      levels_per_metre: steps of grey; 1000 where the file holds millimetres.
      stored: where the size fits both, the map is as stored.
      name: what errors call it; the path by default.
      max_pixels: larger maps are refused before they are decoded.

    Raises:
      UserError: unreadable, not greyscale, or of another size.
    """
    name = name_of(file, name)
    image_file = open_image(file, name, max_pixels)
    if image_file.mode != "L" and not image_file.mode.startswith("I"):
        raise UserError(
            f"{name}: expected a greyscale depth map, found mode {image_file.mode}; save depths as 8- or 16-bit grey"
        )
    levels = np.asarray(image_file).astype(np.float32)
    if levels.max() > np.iinfo(np.uint16).max:
        raise UserError(f"{name}: expected a depth map of 8 or 16 bits, found {levels.max():.0f}; save it so")
    depth = np.where(levels > 0, levels / np.float32(levels_per_metre), np.float32(np.nan))
    return depth if image is None else follow_image(depth, image, stored=stored, noun="depth map", name=name)


def mask_palette(file: str | Path) -> bytes | None:
    """Returns the colours of a palette file, RGB in a row; None of another."""
    try:
        with Image.open(file, formats=FORMATS) as image_file:
            return bytes(image_file.getpalette() or ()) if image_file.mode == "P" else None
    except (OSError, ValueError, SyntaxError):
        return None


def png(pixels: UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"]) -> bytes:
    """Returns a greyscale file of 8 or 16 bits, as `write_png` writes it, in less time and more room."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def write_png(path: Path, pixels: UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"]) -> None:
    """Writes a greyscale file of 8 or 16 bits, which `decode_mask` and `decode_depth` read back."""
    Image.fromarray(pixels).save(path, format="PNG")


def follow_image(labels: np.ndarray, image: Decoded, *, stored: bool, noun: str, name: str) -> np.ndarray:
    """Turns the pixels' labels with their image: those of the stored size, unless the upright size fits as well.

    Args:
      labels: of every pixel.
      image: that they belong to.
      stored: where both sizes fit, they are as stored.
      noun: they are, as the error names it.
      name: of the labels' file.

    Raises:
      UserError: they fit neither.
    """
    width, height = image.header.upright_size
    fits_upright, fits_stored = labels.shape == (height, width), labels.shape == image.stored.shape[:2]
    if fits_stored and (stored or not fits_upright):
        return turn_upright(labels, image.orientation)
    if fits_upright:
        return labels
    raise UserError(
        f"{name}: expected a {noun} of the image's size {width} x {height} px, found {labels.shape[1]} x "
        f"{labels.shape[0]} px; make it from the image again"
    )
