"""Differences of exported files: those that rounding explains do not count, and others do."""

from types import SimpleNamespace

import numpy as np
import pytest

from mtl_jax.export import check

BOXES = np.float32([[0, 0, 9, 9], [20, 0, 30, 9], [0, 20, 9, 30], [0, 0, 0, 0]])
SCORE = np.float32([0.5, 0.25, 0.25, 0])
LABEL = np.int32([0, 1, 1, 0])
SWAPPED = [0, 2, 1, 3]


def detections(order=(0, 1, 2, 3), **fields) -> dict[str, np.ndarray]:
    rows = {"boxes_xyxy": BOXES, "score": SCORE, "label": LABEL, "valid": SCORE > 0, "accepted": SCORE > 0.1, **fields}
    return {f"det/{field}": values[list(order)][None] for field, values in rows.items()}


def difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns the differences of a file of one task from a network that decodes to the expected predictions."""
    (name,) = {key.split("/")[0] for key in expected}
    decoded = {key.removeprefix(f"{name}/"): value for key, value in expected.items()}
    task = SimpleNamespace(decode=lambda outputs: decoded, undecided=None, meanings={})
    raw = {f"{name}/outputs": np.ones((1, 3), np.float32)}
    model = SimpleNamespace(tasks={name: task}, names=(name,))
    return check.differences(model, lambda pixels: dict(raw), lambda pixels: found | raw, [np.zeros(())])


def test_detections_with_equal_scores_have_no_order():
    assert set(difference(detections(SWAPPED), detections()).values()) == {0.0}
    nearly = np.float32([0.5, 0.25, np.nextafter(np.float32(0.25), np.float32(0)), 0])
    assert difference(detections(SWAPPED, score=SCORE), detections(score=nearly))["det/boxes_xyxy"] == 0


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("boxes_xyxy", BOXES + np.float32([[0], [3], [0], [0]])),
        ("score", np.float32([0.5, 0.25, 0.15, 0])),
        ("label", np.int32([0, 1, 2, 0])),
        ("valid", np.array([True, True, False, False])),
        ("accepted", np.array([True, False, True, False])),
    ],
)
def test_a_detection_that_differs_is_found_among_equal_scores(field, values):
    assert difference(detections(SWAPPED, **{field: values}), detections())[f"det/{field}"] > 0.05


def test_detections_with_other_scores_keep_their_order():
    other = np.float32([0.5, 0.25, 0.2499, 0])
    assert difference(detections(SWAPPED, score=other), detections(score=other))["det/boxes_xyxy"] > 0.5


def test_of_indices_the_share_that_differs_counts():
    expected = np.int32(np.arange(200).reshape(1, 10, 20) % 21)
    found = expected.copy()
    found[0, 0, 0] = 20
    assert difference({"seg/mask": found}, {"seg/mask": expected})["seg/mask"] == pytest.approx(1 / 200)


def test_probabilities_near_zero_are_compared_with_one():
    """A runtime may compute the sigmoid of -20 as 0: all of what there is, and nothing to anyone who reads it."""
    expected = {"tags/probability": np.float32([[2e-9, 1e-9]])}
    assert difference({"tags/probability": np.zeros((1, 2), np.float32)}, expected)[
        "tags/probability"
    ] == pytest.approx(2e-9)
    expected = {"age/value": np.float32([[2e-9]])}
    assert difference({"age/value": np.float32([[0.0]])}, expected)["age/value"] == 1.0
