"""What is right and wrong on validation images, class by class and image by image."""

import numpy as np
import pytest

from mtl_jax import tasks
from mtl_jax.evaluation import matching
from mtl_jax.evaluation.details import DETAILS, average_precision, precision_recall
from mtl_jax.tasks.base import Geometry
from mtl_jax.tasks.calibration import Calibration, calibrated

PLAIN = Geometry(1.0, 1.0, 0.0, 0.0, 4, 4)
TASKS = tasks.build(
    {
        "seg": {"kind": "segmentation", "classes": ("background", "cat", "dog")},
        "det": {"kind": "detection", "classes": ("cat", "dog")},
        "cls": {"kind": "classification", "classes": ("cat", "dog")},
        "tags": {"kind": "multi_label", "classes": ("cat", "dog")},
        "age": {"kind": "regression"},
        "depth": {"kind": "depth"},
    }
)


def details(name):
    return DETAILS[TASKS[name].kind](TASKS[name])


def test_masks_are_counted_pixel_by_pixel_and_void_is_left_out():
    observed = details("seg")
    truth = np.array([[0, 0, 1, 255]] * 4, np.uint8)
    predicted = np.array([[0, 1, 1, 2]] * 4)
    judged = observed.update({"mask": predicted}, {"mask": truth}, PLAIN)
    assert judged.quality == pytest.approx((0.5 + 0.5) / 2)
    figures = observed.by_class()
    np.testing.assert_array_equal(figures.confusion, [[4, 4, 0], [0, 4, 0], [0, 0, 0]])
    assert figures.rows == [
        ("background", "0.667", "0.500", "1.000", "0.500"),
        ("cat", "0.333", "0.500", "0.500", "1.000"),
    ]
    assert observed.update({"mask": predicted}, {"mask": np.full((4, 4), 255, np.uint8)}, PLAIN) is None


def test_masks_that_label_some_classes_count_for_these():
    observed = details("seg")
    truth = np.array([[0, 0, 1, 1]] * 4, np.uint8)
    predicted = np.array([[0, 2, 1, 2]] * 4)  # dogs may be there, but where a cat is
    observed.update({"mask": predicted}, {"mask": truth, "labelled": np.array([True, True, False])}, PLAIN)
    figures = observed.by_class()
    np.testing.assert_array_equal(figures.confusion, [[4, 0, 0], [0, 4, 4], [0, 0, 0]])
    assert figures.rows == [
        ("background", "0.333", "1.000", "1.000", "1.000"),
        ("cat", "0.667", "0.500", "1.000", "0.500"),
    ]


def test_each_object_is_found_once_and_crowds_forgive():
    objects = {
        "boxes_xyxy": np.array([[0, 0, 2, 2], [2, 2, 4, 4]], np.float32),
        "label": np.array([0, 1]),
        "crowd": np.array([False, True]),
    }
    result = {
        "boxes_xyxy": np.array([[0, 0, 2, 2], [0, 0, 2, 2], [2, 2, 3, 3], [0, 2, 1, 3]], np.float32),
        "label": np.array([0, 0, 1, 0]),
        "score": np.array([0.6, 0.9, 0.8, 0.4]),
        "valid": np.array([True, True, True, True]),
    }
    matched = matching.detections(result, objects, PLAIN, 2)
    assert matched.score.tolist() == [0.9, 0.6, 0.4]  # what lies on the crowd is left out
    assert matched.correct.tolist() == [True, False, False]
    assert matched.objects.tolist() == [1, 0]
    judged = (observed := details("det")).update(result, objects, PLAIN)
    assert judged.words == "F1 0.50"
    assert observed.by_class().rows == [("cat", "1", "0.333", "1.000", "1.000")]
    assert matching.detections(result, objects | {"boxes_xyxy": np.full((2, 4), np.nan)}, PLAIN, 2) is None


def test_objects_are_counted_by_the_class_of_the_box_that_finds_them():
    objects = {
        "boxes_xyxy": np.array([[0, 0, 2, 2], [2, 0, 4, 2], [0, 2, 2, 4], [2, 2, 4, 4]], np.float32),
        "label": np.array([0, 0, 1, 1]),
        "crowd": np.array([False, False, False, True]),
    }
    result = {
        # A dog on the first cat, which a worse box names rightly; dogs on the second and on the crowd; two on nothing.
        "boxes_xyxy": np.array(
            [[0, 0, 2, 2], [0, 0, 2, 2], [2, 0, 4, 2], [2, 2, 4, 4], [0, 0, 4, 4], [1, 1, 3, 3]], np.float32
        ),
        "label": np.array([1, 0, 1, 1, 0, 0]),
        "score": np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.1]),  # the last is not shown
        "valid": np.ones(6, bool),
    }
    observed = details("det")
    observed.update(result, objects, PLAIN)
    # The dog on the first cat is left with nothing, and the real dog is found by none.
    assert observed.by_class().confusion.tolist() == [[1, 1, 0], [0, 0, 1], [1, 1, 0]]
    of_dogs = matching.pairs(result, objects | {"labelled": np.array([False, True])}, PLAIN, 2)
    assert matching.confusion(of_dogs, np.full(2, 0.3)).tolist() == [[0, 0, 0], [0, 0, 1], [0, 2, 0]]
    observed = details("det")
    assert observed.update(result, objects | {"boxes_xyxy": np.full((4, 4), np.nan)}, PLAIN) is None
    assert observed.by_class() is None


def test_overlaps_are_computed_once_an_image(monkeypatch):
    computed, iou = [], matching._iou
    monkeypatch.setattr(matching, "_iou", lambda *boxes: computed.append(boxes) or iou(*boxes))
    box = {"boxes_xyxy": np.array([[0.0, 0.0, 2.0, 2.0]]), "label": np.array([0])}
    details("det").update({**box, "score": np.array([0.9]), "valid": np.array([True])}, box, PLAIN)
    assert len(computed) == 1


def test_precision_over_recall_has_the_area_of_average_precision():
    score, correct = np.array([0.2, 0.9, 0.5, 0.7]), np.array([True, True, True, False])
    recall, precision = precision_recall(score, correct, objects=4)
    np.testing.assert_allclose(recall, [0.25, 0.25, 0.5, 0.75])
    np.testing.assert_allclose(precision, [1.0, 0.75, 0.75, 0.75])
    assert average_precision((recall, precision)) == pytest.approx(0.25 + 0.25 * 0.75 * 2)


def test_images_are_judged_by_the_probability_of_their_class():
    observed = details("cls")
    judged = [
        observed.update({"probability": np.array([0.9, 0.1])}, {"label": np.array(label)}, PLAIN)
        for label in (0, 1, -1)
    ]
    assert [entry and entry.quality for entry in judged] == [0.9, pytest.approx(0.1), None]
    assert observed.by_class().confusion.tolist() == [[1, 0], [1, 0]]


def test_unknown_tags_count_nowhere():
    observed = details("tags")
    observed.update({"probability": np.array([0.9, 0.9])}, {"label": np.array([1.0, np.nan])}, PLAIN)
    assert observed.by_class().rows == [("cat", "1", "1.000", "1.000", "1.000")]


def test_what_counts_as_shown_reaches_the_threshold_chosen_for_its_class():
    task = calibrated(TASKS["tags"], Calibration(1.0, {"cat": 0.3, "dog": 0.95}))
    judged = {}
    for name, entry in (("default", TASKS["tags"]), ("chosen", task)):
        observed = DETAILS["multi_label"](entry)
        judged[name] = observed.update({"probability": np.array([0.4, 0.9])}, {"label": np.array([1.0, 0.0])}, PLAIN)
        judged[name] = judged[name].words, [row[2:4] for row in observed.by_class().rows]
    assert judged["default"] == ("F1 0.00", [("-", "0.000")])
    assert judged["chosen"] == ("F1 1.00", [("1.000", "1.000")])


@pytest.mark.parametrize(("name", "field"), [("age", "value"), ("depth", "depth")])
def test_errors_are_worse_the_larger_they_are(name, field):
    observed = details(name)
    truth = np.array(3.0) if name == "age" else np.full((4, 4), 3.0)
    small, large = (observed.update({field: np.asarray(truth + step)}, {field: truth}, PLAIN) for step in (1.0, 2.0))
    assert small.quality > large.quality
    assert large.words == "off by 2"
    assert observed.update({field: truth}, {field: truth * np.nan}, PLAIN) is None
    assert observed.by_class() is None


def test_every_kind_has_details():
    assert DETAILS.keys() == tasks.KINDS.keys()
