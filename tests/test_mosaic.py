"""Mosaics: four images around a point, each box still on its object."""

import numpy as np
import pytest

from mtl_jax.data.mosaic import mosaic
from mtl_jax.data.transforms import Augment
from mtl_jax.errors import UserError


def scene(colour, box=(10, 12, 50, 40)):
    left, top, right, bottom = box
    image = np.full((60, 70, 3), 20, np.uint8)
    mask = np.zeros((60, 70), np.uint8)
    image[top:bottom, left:right] = colour
    mask[top:bottom, left:right] = colour
    detection = {
        "boxes_xyxy": np.array([box], np.float32),
        "label": np.array([colour], np.int32),
        "crowd": np.array([False]),
        "area": np.array([1.0], np.float32),
    }
    return {
        "image": image,
        "labels": {
            "detection": detection,
            "segmentation": {"mask": mask},
            "depth": {"depth": mask.astype(np.float32)},
        },
        "id": str(colour),
    }


@pytest.mark.parametrize("scale", [0.4, 1.0, 1.6])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_every_box_lies_on_its_own_object(scale, flip):
    augment = Augment(scale_min=scale, scale_max=scale, flip_probability=flip, min_visible=0.0)
    samples = [scene(colour) for colour in (150, 180, 210, 240)]
    observed = 0
    for seed in range(10):
        created = mosaic(samples, np.random.default_rng(seed), size=(80, 96), augment=augment)
        mask, detection = created["labels"]["segmentation"]["mask"], created["labels"]["detection"]
        assert created["image"].shape == (80, 96, 3)
        assert mask.shape == (80, 96)
        np.testing.assert_array_equal(created["labels"]["depth"]["depth"], np.where(mask == 255, np.nan, mask))
        for corners, label in zip(detection["boxes_xyxy"], detection["label"], strict=True):
            rows, columns = np.nonzero(mask == label)
            if len(rows) == 0:
                assert min(corners[2:] - corners[:2]) < 1
                continue
            expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(corners, expected, atol=1.01)
            observed += 1
        assert set(np.unique(mask)) - {0, 255} <= set(detection["label"].tolist())
    assert observed >= 20


def test_small_images_touch_the_middle():
    augment = Augment(scale_min=0.2, scale_max=0.2)
    created = mosaic([scene(200)] * 4, np.random.default_rng(0), size=(100, 100), augment=augment)
    rows, columns = np.nonzero(created["labels"]["segmentation"]["mask"] != 255)
    assert rows.max() - rows.min() + 1 <= 2 * 18
    assert columns.max() - columns.min() + 1 <= 2 * 21
    assert created["id"] == "200+200+200+200"


def test_the_classes_of_four_images_are_united():
    four = ([1, 0, 0, np.nan], [0, 0, np.nan, np.nan], [np.nan, 0, 0, np.nan], [0, 0, 0, 1])
    samples = [{**scene(200), "labels": {"tags": {"label": np.array(label, np.float32)}}} for label in four]
    label = mosaic(samples, np.random.default_rng(0), size=(32, 32), augment=Augment())["labels"]["tags"]["label"]
    np.testing.assert_array_equal(label, [1, 0, np.nan, 1])
    assert label.dtype == np.float32


def test_image_class_has_no_mosaic():
    sample = {**scene(200), "labels": {"classification": {"label": np.array(1, np.int32)}}}
    with pytest.raises(UserError, match="expected labels that join in a mosaic, found classification"):
        mosaic([sample] * 4, np.random.default_rng(0), size=(32, 32), augment=Augment())
