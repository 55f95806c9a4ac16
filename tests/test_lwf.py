"""Learning without forgetting: the weighted sum over old tasks, and no gradient into the teacher."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.continual import lwf
from mtl_jax.continual.method import StageTasks
from mtl_jax.errors import UserError
from mtl_jax.tasks.base import Task

IMAGE_SIZE = (32, 64)


class OnlyTeaches(Task):
    """Distillation needs nothing but the distillation loss: all else raises."""

    def distillation_loss(self, raw, teacher_raw, image_size, *, balanced=False):
        if balanced and self.name == "seg":
            return jnp.float32(9.0)
        return jnp.mean(jnp.square(raw - teacher_raw)) * image_size[0] / image_size[1]


TASKS = {name: OnlyTeaches(name, ("one", "two"), (32,)) for name in ("seg", "det", "cls")}
RAW = {"seg": jnp.full((2, 2), 3.0), "det": jnp.full((2, 2), 2.0), "cls": jnp.full((2, 2), 9.0)}
TEACHER_RAW = {"seg": jnp.ones((2, 2)), "det": jnp.ones((2, 2))}
WEIGHTS = {"seg": 1.0, "det": 10.0, "cls": 5.0}


def test_the_term_is_the_weighted_sum_over_the_tasks_of_the_teacher():
    total, sections = lwf.distillation(TASKS, RAW, TEACHER_RAW, image_size=IMAGE_SIZE, weights=WEIGHTS)
    assert {name: float(section) for name, section in sections.items()} == {"seg": 2.0, "det": 0.5}
    assert float(total) == 7.0


def test_balanced_distillation_is_taken_where_a_kind_has_it():
    def terms(**settings):
        sections = lwf.distillation(TASKS, RAW, TEACHER_RAW, image_size=IMAGE_SIZE, weights=WEIGHTS, **settings)[1]
        return {name: float(section) for name, section in sections.items()}

    assert terms(balance="classes") == {"seg": 9.0, "det": 0.5}
    assert terms() == {"seg": 2.0, "det": 0.5}


def test_without_old_tasks_the_term_is_zero():
    total, sections = lwf.distillation(TASKS, RAW, {}, image_size=IMAGE_SIZE, weights={})
    assert (float(total), sections) == (0.0, {})


def test_no_gradient_flows_into_the_teacher_but_one_into_the_student():
    def term(raw, teacher_raw):
        return lwf.distillation(TASKS, raw, teacher_raw, image_size=IMAGE_SIZE, weights=WEIGHTS)[0]

    student, teacher = jax.grad(term, argnums=(0, 1))(RAW, TEACHER_RAW)
    assert all(not leaf.any() for leaf in jax.tree.leaves(teacher))
    np.testing.assert_allclose(student["det"], np.full((2, 2), 10 * 2 * 1.0 / 4 / 2))
    assert not student["cls"].any()


def test_of_a_task_that_gets_classes_the_old_ones_are_taught():
    grown = dataclasses.replace(TASKS["det"], classes=("one", "two", "three"))
    stage = StageTasks(own=("det",), old=("det",), extended={"det": TASKS["det"]})
    raw = {"det": jnp.array([[3.0, 3.0, 100.0]])}
    passed = SimpleNamespace(
        model=None,
        tasks={"det": grown},
        stage=stage,
        image=None,
        image_size=IMAGE_SIZE,
        group=("new",),
        raw=raw,
        features={},
    )
    method = lwf.LwF(weight=2.0)
    assert method.reads(stage) == method.gives(stage) == ("det",)
    with pytest.MonkeyPatch.context() as patch:
        teacher = ({"det": jnp.array([[1.0, 1.0, 7.0]])}, {})
        patch.setattr(lwf.multi_task, "eval_raw", lambda *arguments, **settings: teacher)
        (term,) = method.terms(passed, {})
    assert (term.task, float(term.loss)) == ("det", 2.0 * 4.0 / 2)
    assert float(term.metrics["det/new/distillation"]) == 2.0
    assert method.reads(StageTasks(own=("det",), old=("det",))) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"tasks": {"seg": TASKS["seg"]}},
            "a task record for every task of the teacher, found none for det; given are seg",
        ),
        ({"weights": {"seg": 1.0}}, "a weight for every task of the teacher, found none for det"),
        ({"raw": {}}, "an output of the network .*, found none for det, seg; given are none"),
    ],
)
def test_an_old_task_without_its_parts_is_refused(change, words):
    inputs = {
        "tasks": TASKS,
        "raw": RAW,
        "teacher_raw": TEACHER_RAW,
        "image_size": IMAGE_SIZE,
        "weights": WEIGHTS,
    }
    with pytest.raises(UserError, match=words):
        lwf.distillation(**{**inputs, **change})


def test_the_distance_of_features_is_their_relative_squared_way():
    teacher = {"a": jnp.full((2, 3, 3, 4), 2.0), "b": jnp.ones((2, 1, 1, 4))}
    moved = {"a": teacher["a"] * 1.5, "b": teacher["b"]}
    np.testing.assert_allclose(lwf.feature_distance(moved, teacher), (0.25 + 0) / 2, rtol=1e-6)
    grads = jax.grad(lambda teacher: lwf.feature_distance(moved, teacher))(teacher)
    assert not any(leaf.any() for leaf in jax.tree.leaves(grads))
