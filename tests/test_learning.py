"""A task that does no better than before its stage, or than the same output for every image, has not passed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_jax.evaluation import contract, learning

NAN = math.nan


def stage(reached, untrained, constant, *, error=0.01, count=60, metric="top1"):
    return {
        "name": "own",
        "metrics": {"t": {metric: reached}},
        "before": {"t": {metric: untrained}},
        "constant": {"t": {"figure": constant, "standard_error": error, "count": count, "counted": "object"}},
    }


def build(*stages, metric="top1", higher=True):
    return contract.build(stages, {"t": (metric, higher)}, {}, max_drop_percent=5.0)


@pytest.mark.parametrize(
    ("untrained", "constant", "error", "higher", "expected"),
    [
        (0.1, 0.5, 0.0, True, 0.525),  # 5 % of the half
        (0.5, 0.1, 0.02, True, 0.565),
        (0.0, 0.0, 0.01, True, 0.02),
        (None, 0.96, 0.0, True, 0.962),  # 5 % of what is left to 1
        (0.98, NAN, 0.0167, True, 1.0),  # never more than perfect
        (20.0, 10.0, 0.5, False, 8.5),
        (math.inf, 10.0, 0.0, False, 9.5),
        (1.0, 1.0, 3.0, False, 0.0),
        (None, NAN, 0.1, True, None),
    ],
)
def test_what_there_is_to_beat(untrained, constant, error, higher, expected):
    actual = learning.to_beat(untrained, constant, standard_error=error, higher_is_better=higher)
    assert actual == (None if expected is None else pytest.approx(expected))


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_perfect_score_beats_whatever_there_is_and_the_better_of_the_two_does_not(untrained, constant, error):
    result = learning.to_beat(untrained, constant, standard_error=error, higher_is_better=True)
    assert max(untrained, constant) <= result <= 1.0


def test_a_task_at_chance_breaks_the_contract_and_says_so():
    tree = build(stage(0.0003, 0.0, 0.0, metric="map_50_95"), metric="map_50_95")
    entry = tree["tasks"]["t"]
    assert (entry["learnt"], entry["passed"], tree["passed"]) == (False, False, False)
    assert (entry["untrained"], entry["constant"], entry["to_beat"]) == (0.0, 0.0, pytest.approx(0.02))
    assert entry["drop_percent"] == 0.0
    assert "learnt nothing: 0.0003 after its own stage" in entry["reason"]
    assert "validation shows nothing learnt by t; " in contract.as_text(tree)
    assert "not learnt\n" in contract.as_text(tree)
    assert "\nt: learnt nothing: " in contract.as_text(tree)


def test_a_task_that_is_clearly_better_passes():
    entry = build(stage(0.9, 0.2, 0.5))["tasks"]["t"]
    assert (entry["learnt"], entry["passed"]) == (True, True)
    assert "reason" not in entry


@pytest.mark.parametrize(("reached", "learnt"), [(8.0, True), (9.6, False), (NAN, False)])
def test_an_error_has_to_be_smaller(reached, learnt):
    entry = build(stage(reached, 30.0, 10.0, metric="mae"), metric="mae", higher=False)["tasks"]["t"]
    assert entry["learnt"] is learnt


def test_what_was_learnt_in_the_own_stage_and_lost_later_is_a_drop():
    later = {"name": "later", "metrics": {"t": {"top1": 0.5}}, "before": {}, "constant": {}}
    entry = build(stage(0.9, 0.2, 0.5), later)["tasks"]["t"]
    assert entry["learnt"] is True
    assert entry["passed"] is False
    assert "reason" not in entry


def test_a_baseline_from_elsewhere_does_not_stand_for_learning():
    baselines = {"t": contract.Baseline(0.5, "run alone")}
    tree = contract.build([stage(0.5, 0.2, 0.5)], {"t": ("top1", True)}, {}, max_drop_percent=5.0, baselines=baselines)
    assert tree["tasks"]["t"]["learnt"] is False


def test_validation_data_without_labels_is_the_reason():
    entry = build(stage(NAN, NAN, NAN, error=NAN, count=0))["tasks"]["t"]
    assert (entry["passed"], entry["reason"]) == (False, "the validation data has no object")


def test_validation_data_on_which_one_answer_is_perfect_shows_nothing():
    entry = build(stage(1.0, 1.0, 1.0))["tasks"]["t"]
    assert entry["learnt"] is False
    assert "the same output for every validation image is perfect" in entry["reason"]


def test_a_run_without_these_measurements_is_judged_by_its_drop_alone():
    entry = build({"name": "own", "metrics": {"t": {"top1": 0.1}}})["tasks"]["t"]
    assert (entry["learnt"], entry["to_beat"], entry["passed"]) == (None, None, True)
