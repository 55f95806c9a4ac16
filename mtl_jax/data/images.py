"""Decodes one image, mask or depth file: whatever an image's format holds becomes 8-bit RGB, or a readable refusal."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from mtl_jax.data.grey import MOST_BITS, fewest_bits
from mtl_jax.data.orientation import Header
from mtl_jax.data.sources.base import read_bytes, warn_once
from mtl_jax.errors import UserError

# Of Pillow's formats those that datasets come in: others run programs (EPS) or hold images of a size that their header
# does not give (ICO, ICNS).
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "AVIF")
LOSSY = ("JPEG", "MPO")  # what such a file holds is near what was saved, and so may be another class
MAX_PIXELS = 64_000_000  # decoded RGB of this size takes 192 MB; larger files are refused unread

MAX_SCANS = 64  # of a JPEG: a progressive one has about 10, and each costs as much time as the whole image

_SCAN = b"\xff\xda"  # JPEG's marker; inside of a scan no 255 is followed by it
_TILE_TAGS = (322, 323)  # TIFF 6.0, section 15: a tile's width and length, which may exceed the image's
_ORIENTATION_TAG = 0x0112  # EXIF 2.32, section 4.6.4

# How stored pixels are turned upright, by the value of the EXIF tag; other values mean upright.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels.swapaxes(0, 1)[::-1, ::-1],
    8: lambda pixels: np.rot90(pixels, 1),
}


class Decoded(NamedTuple):
    """An image as stored, and how to turn it upright."""

    stored: UInt8[np.ndarray, "stored_height stored_width 3"]
    orientation: int  # EXIF: 1 is upright

    @property
    def header(self) -> Header:
        """Its size and orientation."""
        return Header(self.stored.shape[1], self.stored.shape[0], self.orientation)

    @property
    def upright(self) -> UInt8[np.ndarray, "height width 3"]:
        """The pixels as a viewer shows them."""
        return turn_upright(self.stored, self.orientation)


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Applies an EXIF orientation to `[height, width, ...]` pixels; an unknown one leaves them."""
    turn = _UPRIGHT.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def decode_image(
    file: str | Path | bytes,
    *,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    grey_bits: Callable[[], int] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes an image to upright 8-bit RGB.

    Greyscale, palette and CMYK are converted, transparency is laid over white, 16-bit values are scaled.

    Args:
      file: a path, or the bytes of a file.
      name: what errors call it; the path by default.
      max_pixels: larger images are refused before they are decoded.
      grey_bits: returns the bits of 16-bit files' levels; by default the fewest of 10, 12, 14 and 16 that hold them.

    Returns:
      RGB, with the EXIF orientation applied.

    Raises:
      UserError: missing, empty, truncated, not an image, or too large; with file name and reason.
    """
    return read_image(file, name=name, max_pixels=max_pixels, grey_bits=grey_bits).upright


def read_image(
    file: str | Path | bytes,
    *,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    grey_bits: Callable[[], int] | None = None,
) -> Decoded:
    """Like `decode_image`, but returns the stored orientation with the pixels."""
    name = name_of(file, name)
    image = open_image(file, name, max_pixels)
    return Decoded(_to_rgb(image, name, grey_bits), _orientation_of(image))


def largest_level(file: Path | bytes) -> int:
    """Returns the largest level of a greyscale image in a 16-bit file; 0 of any other file."""
    try:
        with Image.open(file if isinstance(file, Path) else io.BytesIO(file), formats=FORMATS) as image:
            if not image.mode.startswith("I"):
                return 0
        return int(np.asarray(open_image(file, name_of(file, None), MAX_PIXELS)).max())
    except Exception:  # is reported when the image is read
        return 0


def is_of_16_bits(file: Path) -> bool:
    """Whether a file holds greyscale of more than 8 bits.

    Raises:
      UserError: missing, or not an image.
    """
    read_header(file)  # which refuses what cannot be opened
    with Image.open(file, formats=FORMATS) as image:
        return image.mode.startswith("I")


def read_header(file: str | Path) -> Header:
    """Reads an image's size and orientation without decoding its pixels.

    Raises:
      UserError: missing, or not an image.
    """
    name = str(file)
    try:
        with Image.open(file, formats=FORMATS) as image:
            return Header(image.width, image.height, _orientation_of(image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{name}: expected an image, found none ({error}); replace or remove it") from error


def name_of(file: str | Path | bytes, name: str | None) -> str:
    if name is not None:
        return name
    return "<bytes>" if isinstance(file, bytes) else str(file)


def open_image(file: str | Path | bytes, name: str, max_pixels: int) -> Image.Image:
    """Opens and decodes; Pillow raises a dozen kinds of exception for broken files, so all are caught."""
    content = file if isinstance(file, bytes) else read_bytes(Path(file), noun="an image file")
    if not content:
        raise UserError(f"{name}: expected an image, found an empty file; replace or remove it")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UserError(
            f"{name}: expected an image, found none of {', '.join(FORMATS)}; replace or remove it"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{name}: expected at most {max_pixels} pixels, found {error}; shrink it") from error
    except Exception as error:
        raise UserError(f"{name}: expected an image, found none ({error}); replace or remove it") from error
    if not 0 < image.width * image.height <= max_pixels or _tile_pixels(image) > max_pixels:
        raise UserError(
            f"{name}: expected at most {max_pixels} pixels, found {image.width} x {image.height}; shrink it"
        )
    if image.format in ("JPEG", "MPO") and content.count(_SCAN) > MAX_SCANS:
        raise UserError(f"{name}: expected at most {MAX_SCANS} scans, found {content.count(_SCAN)}; save it again")
    try:
        image.load()
    except Exception as error:
        raise UserError(
            f"{name}: expected a complete image, found {error or type(error).__name__}; replace or remove it"
        ) from error
    return image


def _tile_pixels(image: Image.Image) -> int | float:
    """Of a TIFF in tiles; 1 for others."""
    sides = [getattr(image, "tag_v2", {}).get(tag, 1) for tag in _TILE_TAGS]
    return math.prod(side if isinstance(side, int | float) else math.inf for side in sides)


def _orientation_of(image: Image.Image) -> int:
    """A broken EXIF block with sound pixels counts as none."""
    if image.info.get("exif") is None and image.format in ("JPEG", "PNG"):
        return 1  # the common case, without Pillow's search through other metadata
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return 1


def _to_rgb(image: Image.Image, name: str, grey_bits: Callable[[], int] | None) -> np.ndarray:
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.array(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _scale_to_eight_bits(np.asarray(image), name, grey_bits)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.array(image.convert("RGB"))


def _scale_to_eight_bits(values: np.ndarray, name: str, grey_bits: Callable[[], int] | None) -> np.ndarray:
    """Greyscale of 10 to 16 bits to RGB by scaling; Pillow's own conversion would clip at 255."""
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        raise UserError(
            f"{name}: expected 8- or 16-bit pixels, found {values.dtype} from {values.min()} to "
            f"{values.max()}; convert it to 8-bit RGB"
        )
    largest = int(values.max())
    if grey_bits is None:
        bits = fewest_bits(largest)
        if bits < MOST_BITS:
            warn_once(
                f"Greyscale files of 16 bits whose levels need at most {bits} bits are read as {bits}-bit images."
            )
    else:
        bits = grey_bits()
        if largest >= 2**bits:
            warn_once(f"{name}: level {largest} is beyond the training images' {bits} bits; such pixels are white.")
    white = 2**bits - 1
    grey = np.round(np.minimum(values, white) * (255 / white)).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
