"""Balanced distillation: as the plain one where classes are balanced, and more for what the teacher rarely sees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import tasks
from mtl_jax.tasks import detection_cells, distillation

SIZE = (32, 32)
NAMES = ("a", "b")
TASKS = tasks.build(
    {
        "seg": {"kind": "segmentation", "classes": NAMES},
        "cls": {"kind": "classification", "classes": NAMES},
        "tags": {"kind": "multi_label", "classes": NAMES},
        "det": {"kind": "detection", "classes": NAMES, "strides": (8,)},
    }
)
CHECKERBOARD = np.indices((4, 4)).sum(axis=0) % 2  # every cell lies at a border


def logits(label, sharpness=3.0):
    return sharpness * jax.nn.one_hot(jnp.asarray(label, jnp.int32), 2)


def detected(result, label):
    """Sixteen cells whose box is that of an untrained head; `found` says where the teacher sees an object."""
    objectness = jnp.where(jnp.asarray(result), 4.0, -4.0) - detection_cells.PRIOR_LOGIT
    return jnp.concatenate([jnp.zeros((1, 16, 4)), objectness[None, :, None], logits(label)[None]], axis=-1)


HALF = np.arange(16) % 2
BALANCED = {
    "seg": logits(CHECKERBOARD)[None],
    "cls": logits([0, 1, 1, 0]),
    "tags": logits([0, 1, 1, 0], 30.0) - 15.0,
    "det": detected(HALF == 0, np.arange(16) // 2 % 2),
}
RARE = {
    "seg": logits(np.arange(16).reshape(4, 4) == 5)[None],
    "cls": logits([0, 0, 0, 1]),
    "tags": logits([0, 0, 0, 1], 30.0) - 15.0,
    "det": detected(HALF == 0, np.arange(16) == 2),
}


@functools.partial(jax.jit, static_argnums=0)
def both(name, teacher, student):
    task, inputs = TASKS[name], (student, teacher, SIZE)
    return task.distillation_loss(*inputs), task.distillation_loss(*inputs, balanced=True)


both_gradients = jax.jit(jax.jacrev(both, argnums=2), static_argnums=0)


@pytest.mark.parametrize("name", TASKS)
def test_where_classes_are_balanced_both_are_the_same(name, key):
    student = 0.2 * BALANCED[name] + jax.random.normal(key, BALANCED[name].shape)
    plain, balanced = both(name, BALANCED[name], student)
    assert plain > 0.01
    np.testing.assert_allclose(balanced, plain, rtol=1e-4)


@pytest.mark.parametrize("name", TASKS)
def test_the_gradient_of_what_the_teacher_rarely_sees_grows(name, key):
    teacher = RARE[name]
    student = 0.2 * teacher + jax.random.normal(key, teacher.shape)
    plain, balanced = map(np.abs, both_gradients(name, teacher, student))
    rare = {"seg": np.s_[0, 1, 1], "cls": np.s_[3], "tags": np.s_[3, 1], "det": np.s_[0, 2, 5:]}[name]
    common = {"seg": np.s_[0, 3, 3], "cls": np.s_[0], "tags": np.s_[0, 1], "det": np.s_[0, 4, 5:]}[name]
    assert balanced[rare].max() > 1.2 * plain[rare].max()
    assert balanced[common].max() < plain[common].max()


def test_the_background_of_detection_costs_no_more_than_the_objects():
    teacher = detected(np.arange(16) == 3, np.zeros(16))

    def gradient(shift):
        student = teacher.at[..., 4].add(shift)
        return [gradient[0, :, 4] for gradient in both_gradients("det", teacher, student)]

    plain, balanced = gradient(0.01)
    remainder = np.arange(16) != 3
    assert plain[remainder].sum() > 5 * plain[3]
    assert 0.5 * balanced[3] < balanced[remainder].sum() < 2 * balanced[3]


def test_cells_at_borders_weigh_more_than_their_like():
    label = np.zeros((1, 4, 4), int)
    label[:, :, 2:] = 1
    weight = distillation.by_class_and_border(logits(label))
    np.testing.assert_allclose(weight[0, 0], [2 / 3, 4 / 3, 4 / 3, 2 / 3], rtol=1e-6)


def test_the_weight_of_a_stray_cell_is_bounded():
    label = jnp.zeros(1000, jnp.int32).at[0].set(1)
    weight = distillation.rarity(label, jnp.ones(1000), 2)
    np.testing.assert_allclose(weight[0], 1 / distillation.LEAST_SHARE)
    assert np.isfinite(distillation.rarity(label, jnp.zeros(1000), 2)).all()
