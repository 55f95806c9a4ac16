"""A calibrated task: its own scores at a temperature, and answers of the scores that count."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import KINDS

from mtl_jax import tasks
from mtl_jax.tasks import calibration
from mtl_jax.tasks.calibration import Calibration, calibrated

RECORDS = tasks.build(KINDS)
BOXES = {
    "boxes_xyxy": np.array([[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 5.0, 40.0], [0.0] * 4]),
    "score": np.array([0.6, 0.4, 0.0]),
    "label": np.array([1, 0, 0]),
    "valid": np.array([True, True, False]),
}


def test_boxes_count_from_the_threshold_of_their_class():
    both = calibrated(RECORDS["det"], Calibration(1.0, {"cup": 0.35, "ball": 0.7}))
    assert both.to_json(BOXES, None)["label"] == ["cup"]
    assert both.to_json(BOXES, 0.5)["label"] == ["ball"]  # which is asked for counts for all
    assert calibrated(RECORDS["det"]).to_json(BOXES, None)["label"] == ["ball", "cup"]


def test_tags_count_above_the_threshold_of_their_class():
    prediction = {"probability": np.array([0.4, 0.6], np.float32)}
    tags = calibrated(RECORDS["tags"], Calibration(1.0, {"sun": 0.3, "rain": 0.7}))
    assert list(tags.to_json(prediction, None)["tags"]) == ["sun"]
    assert list(calibrated(RECORDS["tags"]).to_json(prediction, None)["tags"]) == ["rain"]


@pytest.mark.parametrize("thresholds", [{}, {"cup": 0.9, "ball": 0.01}])
def test_predictions_say_what_the_answers_say(key, thresholds):
    import jax

    task = calibrated(RECORDS["det"], Calibration(0.5, thresholds))
    outputs = jax.random.normal(key, (1, 80, 7)).at[..., 2:4].add(20.0) * 4
    result, plain = jax.device_get(
        jax.jit(lambda outputs: (task.decode(outputs), RECORDS["det"].decode(outputs)))(outputs)
    )
    message = {name: value[0] for name, value in result.items()}
    assert len(task.to_json(message, None)["label"]) == message["accepted"].sum() > 0
    assert not message["accepted"][~message["valid"]].any()
    odds = np.asarray(plain["score"]) / (1 - np.asarray(plain["score"]))
    assert result["score"] == pytest.approx(odds**2 / (1 + odds**2), rel=1e-4)
    assert (result["label"] == plain["label"]).all()  # in the same order


def test_a_temperature_keeps_the_best_class():
    outputs = jnp.array([[1.0, 2.0]])
    cold, hot = (calibrated(RECORDS["cls"], Calibration(at)).decode(outputs)["probability"][0] for at in (0.5, 2.0))
    assert float(cold[1]) == pytest.approx(1 / (1 + np.exp(-2.0)), rel=1e-5)
    assert float(hot[1]) == pytest.approx(1 / (1 + np.exp(-0.5)), rel=1e-5)


def test_what_has_no_scores_stays_as_it_is():
    assert calibrated(RECORDS["depth"], Calibration(2.0)) is RECORDS["depth"]
    assert calibrated(RECORDS["seg"]) is RECORDS["seg"]


def test_what_is_written_is_read_again():
    selected = {"det": Calibration(1.5, {"cup": 0.25, "ball": 0.5})}
    assert calibration.from_tree(calibration.to_tree(selected)) == selected
    assert calibration.from_tree({}) == {}
