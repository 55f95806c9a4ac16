"""Scores: matched with what is there, tempered to the share that is right, and cut where F1 is best."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mtl_jax import tasks
from mtl_jax.evaluation import calibrate, scores
from mtl_jax.evaluation.scores import OneOf, YesNo
from mtl_jax.tasks import calibration
from mtl_jax.tasks.base import Geometry

SAME = Geometry(1.0, 1.0, 0.0, 0.0, 64, 64)


def test_cells_are_compared_with_the_pixel_at_their_centre():
    cells = np.zeros((4, 4, 2))
    cells[..., 0] = 1.0
    mask = np.zeros((16, 32), np.uint8)
    mask[:, 16:], mask[:8] = 1, 255
    geometry = Geometry(1.0, 1.0, 0.0, 8.0, 16, 32)  # in the middle of 32 x 32 px
    result = scores.of_pixels({"cells": cells, "stride": np.array(8)}, {"mask": mask}, geometry, 2)
    assert result.label.tolist() == [0, 0, 1, 1]  # one row of cells lies on labelled pixels


def test_a_temperature_undoes_a_factor_on_the_logits():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20000, 4))
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    label = (rng.random((20000, 1)) > probability.cumsum(axis=1)).sum(axis=1).clip(max=3)
    true = OneOf(probability, label)
    sure = scores.at_temperature(true, 1 / 3)
    assert scores.temperature(true) == pytest.approx(1.0, abs=0.04)
    assert scores.temperature(sure) == pytest.approx(3.0, abs=0.12)
    assert scores.calibration_error(sure) > 0.1
    assert scores.calibration_error(scores.at_temperature(sure, 3.0)) < 0.02


def test_yes_and_no_have_a_temperature_too():
    rng = np.random.default_rng(0)
    score = rng.uniform(0.05, 0.95, 20000)
    correct = rng.random(20000) < score
    observed = YesNo(score, np.zeros(20000, int), correct, np.array([correct.sum()]))
    assert scores.temperature(scores.at_temperature(observed, 0.5)) == pytest.approx(2.0, abs=0.1)
    assert scores.calibration_error(observed) < 0.02


def test_the_calibration_error_is_the_weighed_gap_of_the_bins():
    observed = YesNo(
        np.array([0.9, 0.9, 0.3, 0.3]), np.zeros(4, int), np.array([True, False, False, False]), np.array([1])
    )
    assert scores.calibration_error(observed) == pytest.approx((abs(1.8 - 1) + 0.6) / 4)
    assert scores.calibration_error(YesNo(*(np.zeros(0, kind) for kind in (float, int, bool)), np.array([0]))) is None


def test_thresholds_divide_right_from_wrong_in_each_class():
    score = np.append(np.tile([0.8, 0.6, 0.4, 0.2], 50), np.tile([0.95, 0.85, 0.65, 0.55], 50))
    correct = np.tile([True, True, False, False], 100)
    label = np.repeat([0, 1], 200)
    observed = YesNo(score, label, correct, np.array([100, 100]))
    levels = scores.thresholds(observed)
    # Of the ranges that divide each class, 0.4 to 0.6 and 0.65 to 0.85, the part that is best for both together.
    assert levels == pytest.approx([0.58, 0.725], abs=0.011)
    assert scores.f1(observed, levels) == 1.0
    assert scores.f1(observed, np.array([0.5, 0.6])) == pytest.approx(2 * 200 / (250 + 200))


def test_a_class_with_few_objects_follows_the_others():
    score = np.append(np.tile([0.8, 0.2], 100), 0.1)
    correct = np.append(np.tile([True, False], 100), True)
    label = np.append(np.zeros(200, int), 1)
    levels = scores.thresholds(YesNo(score, label, correct, np.array([100, 1])))
    assert levels[1] == pytest.approx(levels[0], abs=0.01)  # and not below 0.1, which would find its one object


def test_nothing_seen_is_nothing_joined():
    nothing = YesNo(*(np.zeros(0, kind) for kind in (float, int, bool)), np.array([2]))
    assert scores.joined([None, nothing]) is None
    single = YesNo(np.array([0.5]), np.array([0]), np.array([True]), np.array([1]))
    assert scores.joined([single, None, nothing]).objects.tolist() == [3]


def test_too_few_answers_choose_nothing():
    few = YesNo(np.full(40, 0.9), np.zeros(40, int), np.arange(40) % 2 == 0, np.array([20]))
    assert scores.temperature(few) == 1.0
    assert scores.temperature(scores.joined([few, few])) == 10.0  # half of them right, however sure


def test_few_objects_keep_the_thresholds_of_their_kind():
    task = tasks.build({"det": {"kind": "detection", "classes": ("cup",)}})["det"]
    for objects, selected in ((19, {}), (20, {"cup": 0.49})):
        observed = YesNo(np.array([0.9, 0.1] * 20), np.zeros(40, int), np.arange(40) % 2 == 0, np.array([objects]))
        result = calibrate.choose({"det": task}, {"det": observed}, unseen=False)["det"]
        assert result.thresholds.keys() == selected.keys()
        assert result.temperature == 1.0
        assert calibrate.judge({"det": task}, {"det": observed}, {"det": result})["det"]["f1"] > 0.6


def test_classes_that_came_later_get_thresholds_from_their_own_images_and_leave_the_others_theirs():
    classes = ("cup", "ball", "tree", "car")
    first = tasks.build({"det": {"kind": "detection", "classes": classes[:2]}})["det"]
    grown = tasks.build(
        {"det": {"kind": "detection", "classes": classes, "added": (("more", 2),), "removed": ("car",)}}
    )
    label = np.arange(200) % 2
    old = YesNo(
        np.where(np.arange(200) % 4 < 2, 0.9, 0.1 + label / 2), label, np.arange(200) % 4 < 2, np.array([50, 50])
    )
    more = YesNo(np.where(label == 0, 0.3, 0.2), np.full(200, 2), label == 0, np.array([0, 0, 100, 0]))
    before = calibrate.choose({"det": first}, {"det": old}, unseen=False)["det"]
    seen = {"det": old._replace(objects=np.array([50, 50, 0, 0])), "det/more": more}
    after = calibrate.choose(grown, seen, unseen=False)["det"]
    assert {name: after.thresholds[name] for name in before.thresholds} == before.thresholds
    assert after.thresholds.keys() == {"cup", "ball", "tree"}
    assert 0.2 < after.thresholds["tree"] <= 0.3 < after.thresholds["cup"]


@pytest.mark.parametrize("temper", [calibration.of_one_class, calibration.of_yes_and_no])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
def test_numpy_and_jax_give_the_same_scores_at_a_temperature(temper, temperature):
    probability = np.random.default_rng(0).dirichlet(np.full(4, 0.1), 50).astype(np.float32)
    result = temper(probability, temperature)
    assert isinstance(result, np.ndarray)
    np.testing.assert_allclose(result, temper(jnp.asarray(probability), temperature), rtol=1e-4, atol=1e-6)


@given(st.integers(0, 2**16), st.booleans())
def test_the_temperature_is_the_best_of_all(seed, one_of):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, 80)
    probability = rng.dirichlet(np.full(3, rng.uniform(0.2, 3)), 80)
    observed = OneOf(probability, label)
    if not one_of:
        observed = YesNo(probability[:, 0], label, label == 0, np.array([40, 40, 40]))
    confidence, correct = scores.confidences(observed)
    assume(len(correct) >= scores.LEAST_PREDICTIONS and correct.any() and not correct.all())  # else it stays 1
    chosen = scores.temperature(observed)

    def cost(temperature):
        tempered = scores.at_temperature(observed, temperature)
        if one_of:
            return -np.log(np.maximum(tempered.probability[np.arange(80), label], 1e-12)).mean()
        score = np.clip(calibration.of_yes_and_no(confidence, temperature), 1e-12, 1 - 1e-12)
        return -np.where(correct, np.log(score), np.log1p(-score)).mean()

    assert cost(chosen) <= min(cost(temperature) for temperature in scores.TEMPERATURES[::10]) + 1e-6
