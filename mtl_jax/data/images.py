"""Decodes one image, mask or depth file: whatever an image's format holds becomes 8-bit RGB, or a readable refusal."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, UInt8, UInt16
from PIL import Image, UnidentifiedImageError

from mtl_jax.data.grey import MOST_BITS, fewest_bits
from mtl_jax.data.masks import class_indices
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
    name = _name_of(file, name)
    image = _open(file, name, max_pixels)
    return Decoded(_to_rgb(image, name, grey_bits), _orientation_of(image))


def largest_level(file: Path | bytes) -> int:
    """Returns the largest level of a greyscale image in a 16-bit file; 0 of any other file."""
    try:
        with Image.open(file if isinstance(file, Path) else io.BytesIO(file), formats=FORMATS) as image:
            if not image.mode.startswith("I"):
                return 0
        return int(np.asarray(_open(file, _name_of(file, None), MAX_PIXELS)).max())
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
    name = _name_of(file, name)
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
    name = _name_of(file, name)
    image_file = _open(file, name, max_pixels)
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
    name = _name_of(file, name)
    image_file = _open(file, name, max_pixels)
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


def _name_of(file: str | Path | bytes, name: str | None) -> str:
    if name is not None:
        return name
    return "<bytes>" if isinstance(file, bytes) else str(file)


def _open(file: str | Path | bytes, name: str, max_pixels: int) -> Image.Image:
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
