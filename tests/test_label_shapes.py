"""What is counted of every kind of label is what was written."""

import numpy as np
import pytest

from mtl_jax.data.label_shapes import SHAPES, name_of

NAMES = ("a", "b", "c")
NAN = float("nan")
CASES = {
    "mask": (
        [{"mask": np.array([[0, 0], [1, 255]], np.uint8)}, {"mask": np.array([[1, 1]], np.int32)}],
        {"labelled": 5, "unlabelled": 1}
        | {"classes": {n: {"images": i, "pixels": p} for n, i, p in (("a", 1, 2), ("b", 2, 3), ("c", 0, 0))}},
    ),
    "boxes": (
        [
            {
                "boxes_xyxy": np.zeros((3, 4), np.float32),
                "label": np.array([2, 2, 0], np.int32),
                "crowd": np.array([False, False, True]),
            },
            {"boxes_xyxy": np.zeros((0, 4), np.float32), "label": np.zeros(0, np.int32), "crowd": np.zeros(0, bool)},
        ],
        {"labelled": 2, "unlabelled": 1, "images_without": 1}
        | {"classes": {n: {"images": i, "boxes": b} for n, i, b in (("a", 0, 0), ("b", 0, 0), ("c", 1, 2))}},
    ),
    "class": (
        [{"label": np.array(value, np.int32)} for value in (1, 1, -1)],
        {"labelled": 2, "unlabelled": 1, "classes": {n: {"images": i} for n, i in (("a", 0), ("b", 2), ("c", 0))}},
    ),
    "classes": (
        [{"label": np.array([1, 0, NAN], np.float32)}, {"label": np.array([1, 1, NAN], np.float32)}],
        {"labelled": 4, "unlabelled": 2}
        | {"classes": {n: {"images": i, "images_without": j} for n, i, j in (("a", 2, 0), ("b", 1, 1), ("c", 0, 0))}},
    ),
    "value": (
        [{"value": np.array(value, np.float32)} for value in (1.0, 4.0, 2.0, NAN)],
        {"labelled": 3, "unlabelled": 1, "min": 1.0, "median": 2.0, "max": 4.0},
    ),
    "depth": (
        [{"depth": np.array([[2.0, NAN]], np.float32)}, {"depth": np.array([[NAN, 8.0]], np.float32)}],
        {"labelled": 2, "unlabelled": 2, "min": 2.0, "max": 8.0},
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_totals_are_what_was_written(kind):
    labels, expected = CASES[kind]
    assert [name_of(fields) for fields in labels] == [kind] * len(labels)
    assert SHAPES[kind].total([SHAPES[kind].observe(fields) for fields in labels], NAMES) == expected


@pytest.mark.parametrize(("kind", "fields"), [("value", {"value": NAN}), ("depth", {"depth": np.full((2, 2), NAN)})])
def test_a_split_without_any_number_has_no_range(kind, fields):
    total = SHAPES[kind].total([SHAPES[kind].observe({name: np.asarray(field) for name, field in fields.items()})], ())
    assert total["labelled"] == 0
    assert "min" not in total


def test_masks_of_many_classes_and_of_negative_values_are_counted():
    mask = np.array([[300, 300, -1, 70000]], np.int32)
    assert SHAPES["mask"].observe({"mask": mask})["pixels"] == {"-1": 1, "300": 2, "70000": 1}
