"""Random changes: off by default, decided by the generator alone, and the labels stay on their objects."""

import dataclasses

import numpy as np
import pytest

from mtl_jax.data import transforms, warp
from mtl_jax.data.transforms import Augment
from mtl_jax.errors import UserError

EVERYTHING = Augment(
    scale_min=0.5,
    scale_max=2.0,
    aspect=1.3,
    random_position=True,
    flip_probability=0.5,
    brightness=0.1,
    contrast=0.1,
    saturation=0.1,
    hue=0.02,
    min_visible=0.0,
)


def scene(height=60, width=80, box=(20, 15, 50, 40)):
    """A bright rectangle, with the mask and the box of it."""
    left, top, right, bottom = box
    image = np.full((height, width, 3), 40, np.uint8)
    mask = np.zeros((height, width), np.uint8)
    image[top:bottom, left:right] = (250, 160, 160)
    mask[top:bottom, left:right] = 1
    detection = {
        "boxes_xyxy": np.array([box], np.float32),
        "label": np.array([3], np.int32),
        "crowd": np.array([False]),
        "area": np.array([(right - left) * (bottom - top)], np.float32),
    }
    label = {"label": np.array(2, np.int32)}
    return {
        "image": image,
        "labels": {"segmentation": {"mask": mask}, "detection": detection, "classification": label},
        "id": "a",
    }


def test_nothing_changes_by_default_but_the_letterbox():
    sample = scene()
    moved = transforms.apply(sample, np.random.default_rng(0), size=(80, 80), augment=Augment())
    np.testing.assert_array_equal(moved["image"][10:70], sample["image"])
    assert (moved["image"][:10] == 114).all()
    assert (moved["image"][70:] == 114).all()
    np.testing.assert_array_equal(
        moved["labels"]["segmentation"]["mask"][10:70], sample["labels"]["segmentation"]["mask"]
    )
    assert moved["labels"]["detection"]["boxes_xyxy"].tolist() == [[20, 25, 50, 50]]
    assert moved["labels"]["classification"] == {"label": 2}


def test_the_generator_decides_alone_and_the_sample_is_left_as_it_was():
    sample, untouched = scene(), scene()
    first, again, another = (
        transforms.apply(sample, np.random.default_rng(seed), size=(64, 64), augment=EVERYTHING) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first["image"], again["image"])
    assert (first["image"] != another["image"]).any()
    np.testing.assert_array_equal(sample["image"], untouched["image"])
    np.testing.assert_array_equal(sample["labels"]["segmentation"]["mask"], untouched["labels"]["segmentation"]["mask"])


@pytest.mark.parametrize("seed", range(20))
def test_image_mask_and_box_stay_together(seed):
    moved = transforms.apply(scene(), np.random.default_rng(seed), size=(64, 64), augment=EVERYTHING)
    mask, detection = moved["labels"]["segmentation"]["mask"], moved["labels"]["detection"]
    observed = (mask == 1) & (np.arange(64) >= 0)
    if len(detection["boxes_xyxy"]) == 0:
        assert observed.sum() == 0
        return
    rows, columns = np.flatnonzero(observed.any(axis=1)), np.flatnonzero(observed.any(axis=0))
    expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(detection["boxes_xyxy"][0], expected, atol=1.01)
    inner = moved["image"][rows[0] + 2 : rows[-1] - 1, columns[0] + 2 : columns[-1] - 1]
    assert (inner[:, :, 0] > 180).all()
    assert (moved["image"][mask == 0][:, 0] < 180).mean() > 0.9


def test_scale_and_position_vary_within_their_range():
    augment = Augment(scale_min=0.5, scale_max=2.0, random_position=True)
    rng = np.random.default_rng(0)
    rendered = [transforms.random_placement(100, 100, rng, size=(50, 50), augment=augment) for _ in range(200)]
    scales = np.array([entry.scale_x for entry in rendered]) / 0.5
    assert 0.5 <= scales.min() < 0.6
    assert 1.9 < scales.max() <= 2.0
    for entry in rendered:
        ends = sorted((entry.offset_x, entry.offset_x + 100 * entry.scale_x))
        covers, inside = ends[0] <= 1e-9 and ends[1] >= 50 - 1e-9, ends[0] >= -1e-9 and ends[1] <= 50 + 1e-9
        assert covers or inside
    assert np.std([entry.offset_x for entry in rendered]) > 3


def test_flip_happens_as_often_as_asked():
    rng = np.random.default_rng(0)
    augment = Augment(flip_probability=0.3)
    signs = [transforms.random_placement(9, 9, rng, size=(9, 9), augment=augment).scale_x for _ in range(500)]
    assert 0.25 < np.mean(np.array(signs) < 0) < 0.35


def test_random_crop_fills_the_output_with_the_asked_share_of_the_image():
    augment = Augment(crop_area_min=0.3, aspect=1.33)
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(200):
        placement = transforms.random_placement(90, 160, rng, size=(50, 50), augment=augment)
        width, height = 50 / placement.scale_x, 50 / placement.scale_y
        left, top = -placement.offset_x / placement.scale_x, -placement.offset_y / placement.scale_y
        assert min(left, top) >= -1e-6
        assert left + width <= 160 + 1e-6
        assert top + height <= 90 + 1e-6
        assert 1 / 1.38 <= width / height <= 1.38  # stretched by a third at most, and whole pixels
        shares.append(width * height / (90 * 160))
    assert 0.29 <= min(shares) < 0.4
    assert max(shares) > 0.5


def test_box_less_visible_than_asked_is_dropped_but_a_crowd_stays():
    sample = scene(box=(0, 15, 20, 40))
    placement = warp.Placement(1.0, 1.0, -15.0, 0.0)  # a quarter of the box is left
    for min_visible, count in ((0.2, 1), (0.3, 0)):
        moved = transforms.place(sample, placement, size=(60, 80), min_visible=min_visible)
        assert len(moved["labels"]["detection"]["label"]) == count
    sample["labels"]["detection"]["crowd"][:] = True
    moved = transforms.place(sample, placement, size=(60, 80), min_visible=0.3)
    assert moved["labels"]["detection"]["boxes_xyxy"].tolist() == [[0, 15, 5, 40]]


@pytest.mark.parametrize("seed", range(5))
def test_depth_moves_like_a_mask_and_keeps_its_metres_whatever_the_scale(seed):
    sample = scene()
    mask = sample["labels"]["segmentation"]["mask"]
    sample["labels"]["depth"] = {"depth": np.where(mask == 1, 1.5, 4.0).astype(np.float32)}
    moved = transforms.apply(sample, np.random.default_rng(seed), size=(64, 64), augment=EVERYTHING)["labels"]
    mask, depth = moved["segmentation"]["mask"], moved["depth"]["depth"]
    np.testing.assert_array_equal(depth, np.select([mask == 255, mask == 1], [np.nan, 1.5], 4.0))


def test_an_image_keeps_its_classes_where_a_crop_loses_the_object():
    label = np.array([1.0, 0.0, np.nan], np.float32)
    sample = scene() | {"labels": scene()["labels"] | {"multi_label": {"label": label}}}
    moved = transforms.place(sample, warp.Placement(1.0, 1.0, -60.0, -45.0), size=(10, 10))
    assert len(moved["labels"]["detection"]["label"]) == 0
    np.testing.assert_array_equal(moved["labels"]["multi_label"]["label"], label)


def test_missing_boxes_stay_missing():
    sample = scene()
    sample["labels"]["detection"]["boxes_xyxy"][:] = np.nan
    moved = transforms.apply(sample, np.random.default_rng(0), size=(32, 32), augment=EVERYTHING)
    assert np.isnan(moved["labels"]["detection"]["boxes_xyxy"]).all()


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_colour_change_does_what_its_name_says(name):
    image = np.random.default_rng(0).integers(60, 190, (32, 32, 3), dtype=np.uint8)
    changed = [
        transforms.change_colours(image, np.random.default_rng(seed), augment=Augment(**{name: 0.3})).astype(float)
        for seed in range(20)
    ]
    means = np.array([entry.mean() for entry in changed]) / image.mean()
    spreads = np.array([entry.std() for entry in changed]) / image.std()
    chroma = np.array([np.ptp(entry, axis=2).mean() for entry in changed]) / np.ptp(image.astype(float), axis=2).mean()
    assert sum((entry != image).any() for entry in changed) >= 15
    assert (np.ptp(means) > 0.3) == (name == "brightness")
    assert (np.ptp(spreads) > 0.3) == (name in ("brightness", "contrast", "saturation"))
    assert (np.ptp(chroma) > 0.3) == (name in ("brightness", "contrast", "saturation"))


def test_half_a_turn_of_hue_makes_red_cyan():
    red = np.full((4, 4, 3), (200, 40, 40), np.uint8)
    rng = np.random.default_rng(0)
    hues = np.array([transforms.change_colours(red, rng, augment=Augment(hue=0.5))[0, 0] for _ in range(100)])
    assert hues[:, 0].min() < 50
    assert hues[:, 1:].max(axis=0).min() > 190


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale_min": 0.0},
        {"scale_min": 2.0, "scale_max": 1.0},
        {"aspect": 0.9},
        {"flip_probability": 1.5},
        {"brightness": -0.1},
        {"mosaic_probability": 2.0},
        {"min_visible": -1.0},
        {"crop_area_min": 1.2},
        {"hue": 0.6},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match=rf"augment\.{next(iter(wrong))}: expected .*, found"):
        Augment(**wrong)


def test_every_setting_is_off_by_default():
    neutral = {
        "scale_min": 1.0,
        "scale_max": 1.0,
        "aspect": 1.0,
        "random_position": False,
        "min_visible": 0.2,
    }
    for field in dataclasses.fields(Augment):
        assert field.default == neutral.get(field.name, 0.0)
