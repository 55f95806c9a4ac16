"""The best constant answer of every kind, against answers that really are the same for every image."""

import numpy as np
import pytest

from mtl_jax import tasks
from mtl_jax.tasks.base import Geometry, share_error

CLASSES = ("a", "b", "c")
GEOMETRY = Geometry(0.5, 0.5, 0.0, 0.0, 40, 60)  # of an original of 40 x 60 px
BOXES = np.array([[6.0, 4.0, 30.0, 24.0], [8.0, 4.0, 30.0, 26.0], [6.0, 6.0, 33.0, 24.0], [0.0, 0.0, 3.0, 3.0]])


def labels(kind: str, count: int = 12) -> list[dict[str, np.ndarray]]:
    draw = np.random.default_rng(0)
    created = {
        "classification": lambda: {"label": draw.choice([-1, 0, 1, 1, 2])},
        "segmentation": lambda: {"mask": draw.choice([0, 0, 2, 255], (40, 60))},
        "regression": lambda: {"value": draw.exponential()},
        "depth": lambda: {"depth": draw.exponential(2.0, (40, 60)) + 0.5},
        "multi_label": lambda: {"label": draw.choice([0.0, 0.0, 1.0, np.nan], 3)},
        "detection": lambda: {"boxes_xyxy": BOXES[draw.integers(0, 4, 2)], "label": np.array([0, 0])},
    }
    return [created[kind]() for _ in range(count)]


def answers(kind: str) -> list[dict[str, np.ndarray]]:
    """Candidates: every class, or a fine grid of values."""
    return {
        "classification": [{"probability": np.eye(3)[index]} for index in range(3)],
        "segmentation": [{"mask": np.full((1, 1), index)} for index in range(3)],
        "regression": [{"value": np.array(value)} for value in np.linspace(0, 3, 3001)],
        "depth": [{"depth": np.full((1, 1), value)} for value in np.linspace(0.5, 5, 226)],
        "multi_label": [{"probability": np.array([0.2, 0.9, 0.5])}],
    }[kind]


def metric_of(kind: str):
    settings = {"classes": CLASSES} if kind not in ("regression", "depth") else {}
    task = tasks.build({"t": {"kind": kind, **settings}})["t"]
    return task, task.new_metric()


def reached(kind: str, output: dict[str, np.ndarray]) -> float:
    task, metric = metric_of(kind)
    for target in labels(kind):
        metric.update(output, target, GEOMETRY)
    return metric.compute()[task.main_metric]


@pytest.mark.parametrize("kind", [kind for kind in tasks.KINDS if kind != "detection"])
def test_no_answer_that_is_the_same_for_every_image_is_better(kind):
    task, metric = metric_of(kind)
    for target in labels(kind):
        metric.update(answers(kind)[0], target, GEOMETRY)
    figures = [reached(kind, output) for output in answers(kind)]
    best = max(figures) if task.higher_is_better else min(figures)
    result = metric.constant()
    assert result.figure == pytest.approx(best, abs=2e-2 if kind == "depth" else 2e-3)
    assert 0 < result.standard_error < 1
    assert 0 < result.count <= 12


def test_detection_s_constant_answer_is_the_median_box_of_each_class():
    nothing = {"boxes_xyxy": np.zeros((0, 4)), "valid": np.zeros(0), "score": np.zeros(0), "label": np.zeros(0)}
    _, metric = metric_of("detection")
    for target in labels("detection"):
        metric.update(nothing, target, GEOMETRY)
    boxes = np.concatenate([target["boxes_xyxy"] for target in labels("detection")])
    x, y, width, height = np.median(np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]), axis=0)
    box = np.array([[x, y, x + width, y + height]])  # in px of the image; the input has half as many
    matches = {"boxes_xyxy": box * 0.5, "valid": np.ones(1), "score": np.ones(1), "label": np.zeros(1)}
    result = metric.constant()
    assert result.figure == pytest.approx(reached("detection", matches), abs=1e-6)
    assert result.figure > 0.1
    assert (result.count, result.counted) == (24, "object")
    assert metric.compute()["map_50_95"] == 0.0


@pytest.mark.parametrize("kind", tasks.KINDS)
def test_without_labels_there_is_no_figure(kind):
    _, metric = metric_of(kind)
    result = metric.constant()
    assert np.isnan(result.figure)
    assert result.count == 0


def test_the_error_of_a_share_falls_with_the_count_and_is_never_zero():
    assert share_error(0.5, 100) == pytest.approx(0.05, rel=0.02)
    assert 0 < share_error(0.0, 400) < share_error(0.0, 20) < 0.05
