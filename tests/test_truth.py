"""Labels as they are drawn next to predictions: those of removed classes are not."""

import numpy as np
import pytest

from mtl_jax import tasks
from mtl_jax.report import truth

CLASSES = ("background", "cat", "dog")


def task(kind, **settings):
    return tasks.build({"it": {"kind": kind, "classes": CLASSES, **settings}})["it"]


@pytest.mark.parametrize(("removed", "expected"), [((), ["cat", "dog"]), (("dog",), ["cat"])])
def test_objects_of_removed_classes_are_not_drawn(removed, expected):
    detector = task("detection", removed=removed)
    target = {"boxes_xyxy": np.array([[0, 0, 2, 2], [1, 1, 3, 3]], np.float32), "label": np.array([1, 2])}
    drawn = truth.of(detector, detector.measured_labels(target))
    assert [CLASSES[label] for label in drawn.prediction["label"]] == expected
    assert len(drawn.prediction["boxes_xyxy"]) == len(drawn.prediction["score"]) == len(expected)


def test_pixels_of_removed_classes_are_grey_as_those_without_a_label():
    segmenter = task("segmentation", removed=("dog",))
    mask = np.array([[0, 1, 2, 255]], np.uint8)
    drawn = truth.of(segmenter, segmenter.measured_labels({"mask": mask}))
    assert drawn.unlabelled.tolist() == [[False, False, True, True]]


def test_labels_of_whole_images_leave_removed_classes_out():
    for kind, label, expected in (("classification", np.int32(2), "no label"), ("multi_label", np.eye(3)[2], "none")):
        judged = task(kind, removed=("dog",))
        assert truth.of(judged, judged.measured_labels({"label": label})).words == expected
        assert truth.of(task(kind), {"label": label}).words == "dog"
