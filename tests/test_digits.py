"""The embedded scenes: real handwriting, the same for the same index, disjoint between the splits."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mtl_jax.data.sources import digits
from mtl_jax.errors import UserError

ALL_BUT_CLASS = ("segmentation", "detection")


@pytest.mark.parametrize("labels", ["segmentation", "detection", "classification"])
def test_a_scene_depends_on_split_and_index_alone(labels):
    first, again = (digits.DigitScenes(split="train", labels=labels) for _ in range(2))
    another = digits.DigitScenes(split="val", labels=labels)
    np.testing.assert_array_equal(first[5]["image"], again[5]["image"])
    for field, value in first[5]["labels"][labels].items():
        np.testing.assert_array_equal(value, again[5]["labels"][labels][field])
    assert (first[5]["image"] != first[6]["image"]).any()
    assert (first[5]["image"] != another[5]["image"]).any()
    assert first[5]["id"] == "train-00005"


def test_handwriting_of_train_and_val_is_disjoint_and_stratified():
    (train, train_digits), (val, val_digits) = digits.handwriting("train"), digits.handwriting("val")
    assert len(train) + len(val) == 1797
    assert not {sample.tobytes() for sample in train} & {sample.tobytes() for sample in val}
    share = np.bincount(val_digits) / (np.bincount(val_digits) + np.bincount(train_digits))
    np.testing.assert_allclose(share, 0.2, atol=0.01)
    assert train.min() == 0
    assert train.max() == 1


def test_boxes_hug_the_digits_of_the_mask():
    source = digits.DigitScenes(split="train", labels=ALL_BUT_CLASS, size=96)
    for index in range(30):
        labels = source[index]["labels"]
        mask, boxes = labels["segmentation"]["mask"], labels["detection"]
        assert 1 <= len(boxes["label"]) <= 5
        assert set(np.unique(mask)) - {0} == set((boxes["label"] + 1).tolist())
        for corners, label in zip(boxes["boxes_xyxy"].astype(int), boxes["label"], strict=True):
            left, top, right, bottom = corners
            ink = mask[top:bottom, left:right] == label + 1
            assert 0 <= left < right <= 96
            assert 0 <= top < bottom <= 96
            if len(boxes["label"]) == 1:
                for edge in (ink[0], ink[-1], ink[:, 0], ink[:, -1]):
                    assert edge.any()


def test_boxes_overlap_little():
    source = digits.DigitScenes(split="train", labels="detection")
    for index in range(50):
        boxes = source[index]["labels"]["detection"]["boxes_xyxy"]
        corners = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(
            boxes[:, None, :2], boxes[None, :, :2]
        )
        shared = corners.clip(0).prod(axis=2)
        smaller = np.minimum(shared.diagonal()[:, None], shared.diagonal()[None, :])
        share = shared / smaller
        np.fill_diagonal(share, 0)
        assert share.max(initial=0) <= 0.1


def test_masks_count_from_background():
    source = digits.DigitScenes(split="val")
    assert source.class_names == {"segmentation": ("background", *"0123456789")}
    values = np.unique([source[index]["labels"]["segmentation"]["mask"] for index in range(60)])
    assert values.tolist() == list(range(11))


def test_classification_scenes_hold_one_digit():
    source = digits.DigitScenes(split="val", labels=("classification", "detection", "segmentation"))
    labels = [source[index]["labels"] for index in range(60)]
    for label in labels:
        digit = int(label["classification"]["label"])
        assert label["detection"]["label"].tolist() == [digit]
        assert set(np.unique(label["segmentation"]["mask"])) == {0, digit + 1}
    assert len({int(label["classification"]["label"]) for label in labels}) == 10


def test_digits_stand_out_from_the_background():
    source = digits.DigitScenes(split="train", labels=("classification", "segmentation"))
    for index in range(40):
        sample = source[index]
        ink = sample["labels"]["segmentation"]["mask"] > 0
        contrast = np.abs(sample["image"][ink].mean(axis=0) - sample["image"][~ink].mean(axis=0)).max()
        assert contrast > 25


def test_length_size_and_index_are_as_asked():
    source = digits.DigitScenes(split="train", size=100, length=7)
    assert len(source) == 7
    assert source[6]["image"].shape == (100, 100, 3)
    assert source[6]["image"].dtype == np.uint8
    assert (len(digits.DigitScenes(split="train")), len(digits.DigitScenes(split="val"))) == (2000, 200)
    with pytest.raises(IndexError):
        source[7]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"labels": "depth"}, r"found \['depth'\]"),
        ({"labels": ()}, "expected labels"),
        ({"size": 16}, "at least 32 px"),
    ],
)
def test_impossible_options_are_refused(options, reason):
    with pytest.raises(UserError, match=reason):
        digits.DigitScenes(split="train", **options)


def test_the_file_of_the_samples_is_what_scikit_learn_loads():
    for read, loaded in zip(digits._digits(), load_digits(return_X_y=True), strict=True):
        np.testing.assert_array_equal(read, loaded)
