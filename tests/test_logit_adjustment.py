"""Logit adjustment: what new classes need to outdo old ones by in training, and where nothing is adjusted."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import tasks as tasks_lib
from mtl_jax.continual.logit_adjustment import LogitAdjustment
from mtl_jax.continual.method import StageTasks, Starting
from mtl_jax.errors import UserError

FIRST, LATER = ("one", "two", "three"), ("four", "five")
METHOD = LogitAdjustment(prior=2.0)


def extended(kind):
    """The tasks of a stage that adds classes to a task of a kind, which got one by an earlier stage."""
    task = tasks_lib.build({"task": {"kind": kind, "classes": FIRST, "added": (("earlier", 1),)}})["task"]
    return StageTasks(own=("task", "other"), extended={"task": task})


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_logits_of_the_classes_of_the_stage_are_higher_by_the_prior(kind):
    raw = jax.random.normal(jax.random.key(0), (2, 4, len(FIRST + LATER)))
    adjusted = METHOD.adjusted("task", raw, extended(kind))
    np.testing.assert_array_equal(adjusted[..., :3], raw[..., :3])
    np.testing.assert_allclose(adjusted[..., 3:], raw[..., 3:] + 2.0, rtol=1e-6)


def test_other_tasks_and_kinds_without_competition_are_left_as_they_are():
    raw = jnp.ones((2, len(FIRST + LATER)))
    assert METHOD.adjusted("other", raw, extended("classification")) is raw
    assert METHOD.adjusted("task", raw, extended("multi_label")) is raw


def test_what_is_learnt_is_the_score_among_equally_frequent_classes():
    """Of images that all look alike, e^prior of the new class for each old one, no logit is higher than another."""
    task = tasks_lib.build({"task": {"kind": "classification", "classes": FIRST, "added": (("more", 1),)}})["task"]
    stage = StageTasks(own=("task",), extended={"task": task.before("more")})
    counts = np.array([1.0, 1.0, np.exp(METHOD.prior)])

    def loss(logit):
        raw = METHOD.adjusted("task", jnp.array([[0.0, 0.0, 1.0]]) * logit, stage)
        losses = [task.loss(raw, {"label": jnp.array([label])}, (32, 32))[0] for label in range(3)]
        return jnp.dot(jnp.stack(losses), counts)

    np.testing.assert_allclose(jax.grad(loss)(0.0), 0.0, atol=1e-5)
    assert jax.grad(loss)(1.0) > 0 > jax.grad(loss)(-1.0)


def test_a_stage_without_new_classes_that_compete_is_refused():
    stage = SimpleNamespace(location="config.stages.more")
    with pytest.raises(UserError, match=r"config\.stages\.more\.keep\.logit_adjustment: expected a stage that adds"):
        METHOD.refuse(stage, Starting(StageTasks(own=("task",))))
    with pytest.raises(UserError, match="segmentation or classification, found none; leave it out"):
        METHOD.refuse(stage, Starting(extended("multi_label")))
    METHOD.refuse(stage, Starting(extended("classification")))
