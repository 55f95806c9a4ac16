"""Masks and depth maps: numbers of pixels that follow their image, or a refusal with name and reason."""

import cv2
import numpy as np
import pytest
from PIL import Image
from test_images import HEIGHT, WIDTH, encoded, png, with_orientation

from mtl_jax.data import images, pixel_labels
from mtl_jax.errors import UserError


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def test_palette_mask_gives_indices_not_colours():
    mask = Image.fromarray(np.array([[0, 1, 20, 255]], np.uint8)).convert("P")
    mask.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    assert pixel_labels.decode_mask(encoded(mask), class_count=21).tolist() == [[0, 1, 20, 255]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_greyscale_mask_gives_its_values(dtype):
    content = cv2.imencode(".png", np.array([[0, 3, 255]], dtype))[1].tobytes()
    assert pixel_labels.decode_mask(content, class_count=4).tolist() == [[0, 3, 255]]


def test_mask_value_outside_the_class_table_is_refused():
    content = encoded(Image.fromarray(np.array([[0, 21, 254, 255]], np.uint8)))
    with pytest.raises(UserError, match=r"m\.png: expected class indices 0 to 20 or 255.*found \[21, 254\]"):
        pixel_labels.decode_mask(content, class_count=21, name="m.png")


def test_colour_mask_is_refused(rgb):
    with pytest.raises(UserError, match=r"m\.png: expected a palette or greyscale mask.*found mode RGB"):
        pixel_labels.decode_mask(encoded(Image.fromarray(rgb)), class_count=21, name="m.png")


def test_a_mask_whose_numbers_a_jpeg_has_changed_is_refused():
    """Between classes 0 and 15 the file holds 1 to 14 too, which are classes as well."""
    with pytest.raises(UserError, match=r"m\.jpg: expected a mask of class indices, found a JPEG file, .* as PNG"):
        pixel_labels.decode_mask(
            encoded(Image.fromarray(np.eye(16, dtype=np.uint8)), "JPEG"), class_count=21, name="m.jpg"
        )


def test_mask_of_another_size_is_refused(rgb):
    image = images.read_image(encoded(Image.fromarray(rgb)))
    content = encoded(Image.fromarray(np.zeros((5, 5), np.uint8)))
    with pytest.raises(UserError, match=r"m\.png: expected a mask of the image's size 9 x 6 px, found 5 x 5 px"):
        pixel_labels.decode_mask(content, image=image, class_count=2, name="m.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_levels_give_metres_and_zero_is_missing(dtype):
    content = cv2.imencode(".png", np.array([[0, 1, 250]], dtype))[1].tobytes()
    depth = pixel_labels.decode_depth(content, levels_per_metre=25.0)
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth, np.float32([[np.nan, 0.04, 10.0]]))


def test_depth_in_colour_or_of_another_size_is_refused(rgb):
    image = images.read_image(encoded(Image.fromarray(rgb)))
    with pytest.raises(UserError, match=r"d\.png: expected a greyscale depth map, found mode RGB"):
        pixel_labels.decode_depth(encoded(Image.fromarray(rgb)), levels_per_metre=25.5, name="d.png")
    content = encoded(Image.fromarray(np.zeros((5, 5), np.uint8)))
    with pytest.raises(UserError, match=r"d\.png: expected a depth map of the image's size 9 x 6 px, found 5 x 5 px"):
        pixel_labels.decode_depth(content, image=image, levels_per_metre=25.5, name="d.png")


def test_mask_without_a_labelled_pixel_is_accepted():
    content = encoded(Image.fromarray(np.full((2, 2), 255, np.uint8)))
    assert (pixel_labels.decode_mask(content, class_count=2) == 255).all()


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_mask_follows_its_rotated_image(rgb, orientation):
    image = images.read_image(with_orientation(Image.fromarray(rgb), orientation))
    stored = rgb[:, :, 0] % 2
    upright = image.upright[:, :, 0] % 2
    for drawn_on in (stored, upright):
        mask = pixel_labels.decode_mask(encoded(Image.fromarray(drawn_on)), image=image, class_count=2)
        np.testing.assert_array_equal(mask, upright)


def test_depths_beyond_16_bits_are_refused():
    content = encoded(Image.fromarray(np.array([[1, 70_000]], np.int32)), "TIFF")
    with pytest.raises(UserError, match=r"d\.tif: expected a depth map of 8 or 16 bits, found 70000"):
        pixel_labels.decode_depth(content, levels_per_metre=25.5, name="d.tif")


def test_a_header_that_claims_billions_of_pixels_is_refused_for_masks_and_depths_too():
    content = png(size=(60_000, 60_000))
    with pytest.raises(UserError, match=r"m\.png: expected at most 64000000 pixels"):
        pixel_labels.decode_mask(content, class_count=2, name="m.png")
    with pytest.raises(UserError, match=r"d\.png: expected at most 64000000 pixels"):
        pixel_labels.decode_depth(content, levels_per_metre=1.0, name="d.png")
