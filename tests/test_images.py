"""Decoding: every format that datasets hold becomes upright 8-bit RGB, or a refusal with name and reason."""

import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from mtl_jax.data import images
from mtl_jax.errors import UserError

HEIGHT, WIDTH = 6, 9


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_orientation(image: Image.Image, orientation: int, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif)


def test_rgb_png_comes_back_unchanged_from_path_and_bytes(rgb, tmp_path):
    file = tmp_path / "image.png"
    file.write_bytes(encoded(Image.fromarray(rgb)))
    np.testing.assert_array_equal(images.decode_image(file), rgb)
    np.testing.assert_array_equal(images.decode_image(file.read_bytes()), rgb)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_greyscale_is_repeated_over_the_channels(rgb, mode):
    grey = Image.fromarray(rgb).convert(mode)
    decoded = images.decode_image(encoded(grey))
    np.testing.assert_array_equal(decoded, np.repeat(np.asarray(grey.convert("L"))[:, :, None], 3, axis=2))


def test_palette_colours_are_looked_up():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([1, 0])
    assert images.decode_image(encoded(image)).tolist() == [[[200, 100, 50], [10, 20, 30]]]


@pytest.mark.parametrize("transparent", ["RGBA", "LA", "P", "RGB"])
def test_transparency_is_laid_over_white(transparent):
    if transparent == "P":
        image = Image.new("P", (2, 1))
        image.putpalette([10, 10, 10, 0, 0, 0])
        image.putdata([0, 1])
        content = encoded(image, transparency=b"\xff\x00")
    elif transparent == "RGB":
        image = Image.fromarray(np.array([[[10, 10, 10], [0, 0, 0]]], np.uint8))
        content = encoded(image, transparency=(0, 0, 0))
    else:
        image = Image.fromarray(np.array([[[10, 10, 10, 255], [0, 0, 0, 0]]], np.uint8)).convert(transparent)
        content = encoded(image)
    assert images.decode_image(content).tolist() == [[[10, 10, 10], [255, 255, 255]]]


def test_cmyk_jpeg_keeps_its_colours():
    red = Image.new("RGB", (16, 16), (220, 30, 30)).convert("CMYK")
    decoded = images.decode_image(encoded(red, "JPEG", quality=95))
    np.testing.assert_allclose(decoded.mean(axis=(0, 1)), [220, 30, 30], atol=6)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    levels = np.array([[0, 257, 32896, 65535]], np.uint16)
    decoded = images.decode_image(cv2.imencode(".png", levels)[1].tobytes())
    assert decoded[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_grey_of_fewer_bits_than_its_file_has_is_as_bright(bits):
    levels = np.array([[0, 2 ** (bits - 1), 2**bits - 1]], np.uint16)
    assert images.decode_image(cv2.imencode(".png", levels)[1].tobytes())[0, :, 0].tolist() == [0, 128, 255]


def test_sixteen_bit_colour_is_scaled_not_clipped():
    levels = np.array([[[0, 32896, 65535]]], np.uint16)  # OpenCV writes blue first
    assert images.decode_image(cv2.imencode(".png", levels)[1].tobytes()).tolist() == [[[255, 128, 0]]]


def test_float_image_is_refused(tmp_path):
    file = tmp_path / "float.tiff"
    Image.fromarray(np.zeros((2, 2), np.float32)).save(file)
    with pytest.raises(UserError, match=r"float\.tiff: expected 8- or 16-bit pixels, found float32"):
        images.decode_image(file)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_does(rgb, orientation):
    content = with_orientation(Image.fromarray(rgb), orientation)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    np.testing.assert_array_equal(images.decode_image(content), expected)


def test_exif_orientation_of_a_jpeg_is_applied(rgb):
    content = with_orientation(Image.fromarray(rgb), 6, "JPEG")
    assert images.decode_image(content).shape == (WIDTH, HEIGHT, 3)


def test_broken_exif_counts_as_none(rgb):
    content = encoded(Image.fromarray(rgb), "JPEG", exif=b"Exif\x00\x00nonsense")
    assert images.decode_image(content).shape == rgb.shape


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda content: b"", "empty file"),
        (lambda content: content[: len(content) // 2], "expected a complete image"),
        (lambda content: b"<html>not found</html>", "expected an image, found none"),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_broken_file_is_refused_with_name_and_reason(tmp_path, spoil, reason, kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = spoil(encoded(Image.fromarray(noise), kind))
    file = tmp_path / "broken.img"
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"broken\.img: .*{reason}"):
        images.decode_image(file)


def test_png_with_spoilt_bytes_is_refused():
    content = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    with pytest.raises(UserError, match=r"spoilt\.png: expected a complete image"):
        images.decode_image(content[:60] + bytes(40) + content[100:], name="spoilt.png")


def test_missing_file_is_refused_with_its_path(tmp_path):
    with pytest.raises(UserError, match=r"gone\.jpg: .*No such file"):
        images.decode_image(tmp_path / "gone.jpg")


def test_image_over_the_pixel_limit_is_refused_before_decoding(rgb):
    with pytest.raises(UserError, match=r"big: expected at most 53 pixels, found 9 x 6"):
        images.decode_image(encoded(Image.fromarray(rgb)), name="big", max_pixels=53)
    assert images.decode_image(encoded(Image.fromarray(rgb)), max_pixels=54).shape == rgb.shape


def test_decompression_bomb_is_refused():
    bomb = encoded(Image.new("1", (20_000, 10_000)))  # a few kB that would decode to 600 MB
    with pytest.raises(UserError, match="bomb: expected at most 64000000 pixels"):
        images.decode_image(bomb, name="bomb")


@pytest.mark.parametrize("place", ["pipe", "/dev/zero", "folder"])
def test_what_is_no_file_is_refused_and_not_waited_for(place, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"{place}: expected an image file, found a folder or device"):
        images.decode_image(tmp_path / place)


@pytest.mark.parametrize("name", ["a\0b.png", "\ud800.png", "x" * 500])
def test_a_name_that_no_file_can_have_is_refused(name, tmp_path):
    with pytest.raises(UserError, match="expected an image file"):
        images.decode_image(tmp_path / name)


@pytest.mark.parametrize("kind", ["ICO", "EPS", "PDF"])
def test_formats_that_run_programs_or_hide_their_size_are_refused(kind):
    with pytest.raises(UserError, match="expected an image, found none of JPEG, PNG"):
        images.decode_image(encoded(Image.new("RGB", (16, 16)), kind))


def test_a_tiff_whose_tiles_exceed_the_image_and_the_limit_is_refused():
    tags = ((256, 10), (257, 10), (258, 8), (259, 5), (262, 1), (277, 1), (322, 40_000), (323, 40_000), (324, 200))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in (*tags, (325, 16)))
    content = b"II*\0" + struct.pack("<IH", 8, len(tags) + 1) + entries + bytes(100)
    with pytest.raises(UserError, match=r"t\.tif: expected at most 64000000 pixels"):
        images.decode_image(content, name="t.tif")


def test_a_jpeg_of_endless_scans_is_refused_unread(rgb):
    content = encoded(Image.fromarray(rgb), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    assert images.decode_image(content).shape == rgb.shape
    with pytest.raises(UserError, match=r"j\.jpg: expected at most 64 scans, found 109"):
        images.decode_image(content[:last] + content[last:-2] * 100 + content[-2:], name="j.jpg")


def png(*chunks: tuple[bytes, bytes], size=(4, 4)) -> bytes:
    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    full = ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in full
    )


@pytest.mark.parametrize(("kind", "start"), [(b"iCCP", b"x\0\0"), (b"zTXt", b"x\0\0"), (b"iTXt", b"x\0\1\0\0\0")])
def test_metadata_that_unpack_without_end_are_refused(kind, start):
    bomb = start + zlib.compress(bytes(1 << 24))
    with pytest.raises(UserError, match=r"b\.png: .*too large"):
        images.decode_image(png((kind, bomb)), name="b.png")
    assert images.decode_image(png()).shape == (4, 4, 3)
