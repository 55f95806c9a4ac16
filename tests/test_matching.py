"""Boxes are matched with objects, each object once; what nobody labelled counts nowhere."""

import numpy as np

from mtl_jax.evaluation import matching
from mtl_jax.tasks.base import Geometry

SAME = Geometry(1.0, 1.0, 0.0, 0.0, 64, 64)


def detections(boxes, score, label) -> dict:
    count = len(boxes)
    return {
        "boxes_xyxy": np.array(boxes, np.float32).reshape(-1, 4),
        "score": np.array(score, np.float32),
        "label": np.array(label, np.int32),
        "valid": np.ones(count, bool),
    }


def test_each_object_is_found_once_by_the_best_box_of_its_class():
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [40, 40, 50, 50]]
    target = {"boxes_xyxy": np.array([[0.0, 0.0, 10.0, 10.0]]), "label": np.array([1])}
    result = matching.detections(detections(boxes, [0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1]), target, SAME, 2)
    assert result.correct.tolist() == [True, False, False, False]
    assert result.objects.tolist() == [0, 1]


def test_boxes_on_crowds_of_unlabelled_classes_and_of_unlabelled_images_count_nowhere():
    boxes, label = [[0, 0, 10, 10], [30, 30, 40, 40]], [0, 1]
    crowd = {"boxes_xyxy": np.array([[0.0, 0.0, 20.0, 20.0]]), "label": np.array([0]), "crowd": np.array([True])}
    result = matching.detections(detections(boxes, [0.9, 0.8], label), crowd, SAME, 2)
    assert (result.label.tolist(), result.objects.tolist()) == ([1], [0, 0])
    partly = {"boxes_xyxy": np.zeros((0, 4)), "label": np.zeros(0, int), "labelled": np.array([True, False])}
    assert matching.detections(detections(boxes, [0.9, 0.8], label), partly, SAME, 2).label.tolist() == [0]
    nobody = {"boxes_xyxy": np.full((1, 4), np.nan), "label": np.array([0])}
    assert matching.detections(detections(boxes, [0.9, 0.8], label), nobody, SAME, 2) is None
