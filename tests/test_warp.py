"""Placing images and masks: exact where it can be, and both by the same coordinates."""

from unittest import mock

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtl_jax.data import warp
from mtl_jax.data.warp import Placement


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_identity_changes_nothing():
    image, mask = noise(7, 9), noise(7, 9)[:, :, 0]
    placement = Placement(1.0, 1.0, 0.0, 0.0)
    np.testing.assert_array_equal(warp.warp(image, placement, size=(7, 9)), image)
    np.testing.assert_array_equal(warp.warp_nearest(mask, placement, size=(7, 9), missing=255), mask)


def test_whole_pixel_shift_pads_with_grey_and_void():
    image, mask = noise(4, 5), noise(4, 5)[:, :, 0] // 2
    placement = Placement(1.0, 1.0, 2.0, 1.0)
    moved = warp.warp(image, placement, size=(6, 8))
    moved_mask = warp.warp_nearest(mask, placement, size=(6, 8), missing=255)
    np.testing.assert_array_equal(moved[1:5, 2:7], image)
    np.testing.assert_array_equal(moved_mask[1:5, 2:7], mask)
    outside = np.ones((6, 8), bool)
    outside[1:5, 2:7] = False
    assert (moved[outside] == 114).all()
    assert (moved_mask[outside] == 255).all()


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.7])
def test_a_missing_depth_stays_where_it_is_and_every_other_is_one_of_those_labelled(scale):
    depth = np.array([[1.0, 2.0, np.nan], [4.0, np.nan, 6.0]], np.float32).repeat(20, axis=0).repeat(20, axis=1)
    side = (round(40 * scale), round(60 * scale))
    moved = warp.warp_nearest(depth, warp.stretch(40, 60, size=side), size=side, missing=np.nan)
    assert moved.dtype == np.float32
    assert set(np.unique(moved[~np.isnan(moved)])) == {1, 2, 4, 6}
    np.testing.assert_allclose(np.isnan(moved).mean(), 1 / 3, atol=0.05)
    padded = warp.warp_nearest(depth, Placement(1.0, 1.0, 10.0, 0.0), size=(40, 80), missing=np.nan)
    np.testing.assert_array_equal(padded[:, 10:70], depth)
    assert np.isnan(padded[:, :10]).all()


def test_mirror_is_numpys_flip():
    image, mask = noise(4, 6), noise(4, 6)[:, :, 0]
    placement = warp.mirror(Placement(1.0, 1.0, 0.0, 0.0), 6)
    np.testing.assert_array_equal(warp.warp(image, placement, size=(4, 6)), image[:, ::-1])
    np.testing.assert_array_equal(warp.warp_nearest(mask, placement, size=(4, 6), missing=255), mask[:, ::-1])


def test_mirror_twice_is_nothing():
    placement = Placement(1.5, 0.5, 3.0, 4.0)
    assert warp.mirror(warp.mirror(placement, 20), 20) == placement


def test_letterbox_keeps_the_aspect_and_centres():
    assert warp.fit(100, 200, size=(400, 400)) == Placement(2.0, 2.0, 0.0, 100.0)
    assert warp.fit(200, 100, size=(100, 100)) == Placement(0.5, 0.5, 25.0, 0.0)


def test_a_crop_fills_the_output_with_the_middle():
    assert warp.fit(100, 200, size=(400, 400), crop=True) == Placement(4.0, 4.0, -200.0, 0.0)
    assert warp.fit(200, 100, size=(100, 100), crop=True) == Placement(1.0, 1.0, 0.0, -50.0)


def test_stretch_fills_the_output():
    assert warp.stretch(100, 200, size=(50, 50)) == Placement(0.25, 0.5, 0.0, 0.0)


def test_enlarged_image_fills_its_place_up_to_the_border():
    moved = warp.warp(np.full((4, 4, 3), 200, np.uint8), Placement(3.0, 3.0, 0.0, 0.0), size=(12, 12))
    assert (moved == 200).all()


@pytest.mark.parametrize("factor", [3, 4, 7])
def test_strong_shrinking_averages(factor):
    stripes = np.zeros((84, 84, 3), np.uint8)
    stripes[:, ::2] = 254
    moved = warp.warp(stripes, warp.stretch(84, 84, size=(84 // factor, 84 // factor)), size=(84 // factor,) * 2)
    assert np.abs(moved.astype(int) - 127).max() <= 254 / factor / 2 + 1


@settings(max_examples=30, deadline=None)
@given(
    scale=st.floats(0.2, 4.0),
    stretching=st.floats(0.8, 1.25),
    offset=st.tuples(st.floats(-40, 40), st.floats(-40, 40)),
    flipped=st.booleans(),
)
@example(scale=0.5, stretching=1.0, offset=(1.5, 0.0), flipped=True)  # centres on edges of the image
@example(scale=1.0, stretching=1.0, offset=(1.5, 0.0), flipped=True)
@example(scale=1.0, stretching=1.0, offset=(1.5, 2.5), flipped=False)
@example(scale=0.5, stretching=1.1, offset=(0.5, 0.0), flipped=False)  # on an edge but for rounding
def test_mask_stays_on_its_object_whatever_the_placement(scale, stretching, offset, flipped):
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 15:50] = 1
    image = np.repeat(mask[:, :, None] * 200, 3, axis=2)
    placement = Placement(scale * stretching, scale / stretching, *offset)
    placement = warp.mirror(placement, 48) if flipped else placement
    moved = warp.warp(image, placement, size=(64, 48))[:, :, 0].astype(int)
    moved_mask = warp.warp_nearest(mask, placement, size=(64, 48), missing=255)
    assert ((moved == 114) | (moved_mask != 255)).all()  # void only where the image is padded
    inside = moved_mask != 255
    disagree = inside & ((moved > 100) != (moved_mask == 1))
    shown, around = (moved_mask == 1).astype(np.uint8), np.ones((3, 3))
    inner = cv2.erode(shown, around, borderType=cv2.BORDER_CONSTANT, borderValue=0)  # may lie just outside
    outer = cv2.dilate(shown, around, borderType=cv2.BORDER_CONSTANT, borderValue=1)
    assert not (disagree & (inner == outer)).any()  # along the object's outline only


SMOOTH = cv2.GaussianBlur(noise(30, 36), (0, 0), 2)


@given(
    scale=st.floats(0.5, 2.5),
    stretching=st.floats(0.9, 1.1),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    flipped=st.booleans(),
)
def test_a_snapped_placement_is_near_and_its_resized_crop_is_what_the_warp_gives(scale, stretching, shares, flipped):
    size, image = (48, 40), SMOOTH
    height, width = image.shape[:2]
    scale_x, scale_y = scale * stretching, scale / stretching
    placement = Placement(
        scale_x, scale_y, (size[1] - width * scale_x) * shares[0], (size[0] - height * scale_y) * shares[1]
    )
    placement = warp.mirror(placement, size[1]) if flipped else placement
    snapped = warp.snapped(placement, height, width, size=size)
    for near, exact, length, side in (
        ((snapped.scale_x, snapped.offset_x), (placement.scale_x, placement.offset_x), width, size[1]),
        ((snapped.scale_y, snapped.offset_y), (placement.scale_y, placement.offset_y), height, size[0]),
    ):
        assert np.sign(near[0]) == np.sign(exact[0])
        for pixel in np.linspace(0, length, 9):  # no visible pixel moves by more than half a pixel of either
            if 0 <= pixel * exact[0] + exact[1] <= side:
                moved = abs(pixel * (near[0] - exact[0]) + near[1] - exact[1])
                assert moved <= 0.5 * max(1.0, abs(exact[0])) + 1e-6
    assert warp.snapped(snapped, height, width, size=size) == pytest.approx(snapped)
    result = warp.warp(image, snapped, size=size)
    with mock.patch.object(warp, "_resized_crop", return_value=None):
        expected = warp.warp(image, snapped, size=size)
    inside = (slice(3, -3), slice(3, -3))  # at borders of the crop the warp mixes in what lies beyond
    difference = np.abs(result[inside].astype(int) - expected[inside])
    assert difference.mean() < 1.0
    np.testing.assert_array_equal((result == 114).all(axis=-1).all(axis=0), (expected == 114).all(axis=-1).all(axis=0))


def test_what_is_not_visible_stays_where_it_is():
    away = Placement(1.0, 1.0, 100.0, 0.0)
    assert warp.snapped(away, 10, 10, size=(8, 8)) == away
    assert (warp.warp(np.zeros((10, 10, 3), np.uint8), away, size=(8, 8)) == 114).all()
