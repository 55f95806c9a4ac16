"""Boxes move with their image, and are padded to a fixed number."""

import numpy as np

from mtl_jax.data import boxes, warp
from mtl_jax.data.warp import Placement


def fields(corners, crowd=None):
    corners = np.array(corners, np.float32).reshape(-1, 4)
    count = len(corners)
    return {
        "boxes_xyxy": corners,
        "label": np.arange(count, dtype=np.int32) + 1,
        "crowd": np.zeros(count, bool) if crowd is None else np.array(crowd),
        "area": boxes.areas(corners),
    }


def test_boxes_move_by_scale_and_offset():
    moved = boxes.place_boxes(np.array([[1, 2, 3, 5]], np.float32), Placement(2.0, 3.0, 10.0, 20.0))
    assert moved.tolist() == [[12, 26, 16, 35]]


def test_mirrored_boxes_keep_their_corners_in_order():
    moved = boxes.place_boxes(np.array([[1, 2, 3, 5]], np.float32), warp.mirror(Placement(1.0, 1.0, 0.0, 0.0), 10))
    assert moved.tolist() == [[7, 2, 9, 5]]


def test_clipping_keeps_what_is_visible_enough():
    corners = np.array([[-5, 0, 5, 10], [-8, 0, 2, 10], [-10, 0, 0, 10], [2, 2, 4, 4]], np.float32)
    clipped, visible = boxes.clip_boxes(corners, size=(10, 10), min_visible=0.3)
    assert visible.tolist() == [True, False, False, True]
    assert clipped[0].tolist() == [0, 0, 5, 10]


def test_padding_is_zero_and_not_valid():
    padded, lost = boxes.pad_boxes(fields([[1, 2, 3, 4], [5, 6, 7, 8]], crowd=[False, True]), 4)
    assert lost == 0
    assert padded["valid"].tolist() == [True, False, False, False]
    assert padded["crowd"].tolist() == [False, True, False, False]
    assert padded["label"].tolist() == [1, 2, 0, 0]
    assert padded["boxes_xyxy"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [0] * 4, [0] * 4]


def test_no_box_is_finite_and_not_valid():
    padded, lost = boxes.pad_boxes(fields([]), 2)
    assert lost == 0
    assert np.isfinite(padded["boxes_xyxy"]).all()
    assert not padded["valid"].any()


def test_too_many_boxes_keep_the_largest_in_their_order_and_crowds_last():
    many = fields([[0, 0, 2, 2], [0, 0, 9, 9], [0, 0, 4, 4], [0, 0, 3, 3]], crowd=[False, True, False, False])
    padded, lost = boxes.pad_boxes(many, 2)
    assert lost == 2
    assert padded["label"].tolist() == [3, 4]
    padded, lost = boxes.pad_boxes(many, 3)
    assert lost == 1
    assert padded["label"].tolist() == [1, 3, 4]


def test_missing_label_stays_missing():
    padded, lost = boxes.pad_boxes(fields([[np.nan] * 4]), 3)
    assert lost == 0
    assert np.isnan(padded["boxes_xyxy"]).all()
    assert not padded["valid"].any()
