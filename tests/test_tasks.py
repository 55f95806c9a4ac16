"""Tasks from a configuration: every kind is built, every mistake is one readable line."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import tasks
from mtl_jax.errors import UserError
from mtl_jax.tasks import boxes

CLASSES = {"classes": ["background", "cat", "dog"]}
CONFIG = {kind: {"kind": kind} | (CLASSES if kind not in ("regression", "depth") else {}) for kind in tasks.KINDS}
SIZE = (32, 64)


def raw_of(task: tasks.Task, batch: int, key: jax.Array) -> jax.Array:
    height, width = SIZE
    stride = task.strides[0]
    shape = {
        "dense": (height // stride, width // stride),
        "cells": (sum(rows * columns for rows, columns in boxes.level_shapes(SIZE, task.strides)),),
        "pooled": (),
    }[task.readout]
    return jax.random.normal(key, (batch, *shape, task.channels))


def test_build_keeps_names_order_and_settings():
    built = tasks.build(
        {"b": {"kind": "detection", "classes": ["cat"], "strides": [8, 16]}, "a": CONFIG["classification"]}
    )
    assert list(built) == ["b", "a"]
    assert built["b"].strides == (8, 16)
    assert built["b"].channels == 6
    assert built["a"].classes == ("background", "cat", "dog")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"classes": ["cat"]}, r"config\.tasks\.x\.kind: expected one of segmentation, "),
        ({"kind": "pose"}, "kind: expected one of segmentation"),
        (
            {"kind": "detection", "classes": ["a"], "anchors": 3},
            r"tasks\.x has no setting anchors; expected one of classes",
        ),
        ({"kind": "detection"}, "tasks.x.classes: expected a tuple of names"),
        ({"kind": "classification", "classes": "abc"}, r"tasks\.x\.classes: expected a list of names"),
        ({"kind": "classification", "classes": ["a", "b", "a"]}, "expected each class once, found 'a' more than once"),
        ({"kind": "detection", "classes": ["a", " "]}, "expected names, in letters or digits, found ' '"),
        (
            {"kind": "detection", "classes": ["a"], "box_weight": -1.0},
            "box_weight: expected at least 0",
        ),
        (
            {"kind": "detection", "classes": ["a"], "class_weight": math.inf},
            "class_weight: expected",
        ),
        ({"kind": "detection", "classes": ["a"], "strides": (8, 8)}, "expected each level once"),
        (
            {"kind": "segmentation", "classes": ["a", "b"], "class_weights": (math.nan, 1.0)},
            r"class_weights\[0\]: expected .*, found nan",
        ),
        ({"kind": "segmentation", "classes": ["a", "b"], "class_weights": (0, 0)}, "2 class_weights, one above 0"),
        ({"kind": "classification", "classes": ["a", "b"], "distillation_temperature": 0}, "expected more than 0"),
        ({"kind": "detection", "classes": []}, r"tasks\.x\.classes: expected names of classes.*, found none"),
    ],
)
def test_mistakes_in_a_section_are_refused(section, message):
    with pytest.raises(UserError, match=message) as error:
        tasks.build({"x": section})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", tasks.KINDS)
def test_every_kind_takes_its_name_and_its_classes_if_it_has_any_first(kind):
    parameters = list(inspect.signature(tasks.KINDS[kind]).parameters)
    assert parameters[: 1 + ("classes" in parameters)] == (["name", "classes"] if "classes" in parameters else ["name"])
    task = tasks.build(CONFIG)[kind]
    assert task.kind == kind
    assert task.name == kind


@pytest.mark.parametrize("kind", tasks.KINDS)
def test_images_without_labels_cost_nothing_and_teach_nothing(kind, key):
    task = tasks.build(CONFIG)[kind]
    loss = jax.jit(jax.value_and_grad(lambda raw: task.loss(raw, task.no_labels(2, SIZE), SIZE)[0]))
    value, gradient = loss(raw_of(task, 2, key))
    assert value == 0
    assert not np.any(gradient)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("kind", tasks.KINDS)
def test_a_student_equal_to_its_teacher_has_no_distillation_loss(kind, balanced, key):
    task = tasks.build(CONFIG)[kind]
    loss = functools.partial(task.distillation_loss, balanced=balanced)
    raw = raw_of(task, 2, key)
    another = raw_of(task, 2, jax.random.fold_in(key, 1))
    distil = jax.jit(jax.value_and_grad(lambda raw, teacher: loss(raw, teacher, SIZE)))
    value, gradient = distil(raw, raw)
    np.testing.assert_allclose(value, 0, atol=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)
    assert distil(raw, another)[0] > 0.01


@pytest.mark.parametrize("kind", tasks.KINDS)
def test_outputs_are_finished_and_decoded_at_fixed_sizes(kind, key):
    task = tasks.build(CONFIG)[kind]
    outputs, prediction = jax.jit(lambda raw: (finished := task.finish(raw, image_size=SIZE), task.decode(finished)))(
        raw_of(task, 2, key).astype(jnp.bfloat16)
    )
    expected = {"segmentation": (2, 32, 64, 3), "detection": (2, 42, 8), "classification": (2, 3)}
    expected |= {"multi_label": (2, 3), "regression": (2,), "depth": (2, 32, 64)}
    assert outputs.shape == expected[kind]
    assert outputs.dtype == jnp.float32
    assert all(leaf.shape[0] == 2 for leaf in prediction.values())


@pytest.mark.parametrize("kind", tasks.KINDS)
def test_labels_drawn_from_the_prediction_pull_it_nowhere_on_average(kind, key):
    # The score of a likelihood has mean zero under its own distribution.
    task = tasks.build(CONFIG)[kind]
    raw = raw_of(task, 1, key)
    gradients = jax.jit(jax.vmap(jax.grad(lambda raw, key: task.sampled_loss(raw, SIZE, key)), in_axes=(None, 0)))(
        raw, jax.random.split(key, 2000)
    )
    assert jnp.abs(gradients).max() > 0
    standard_error = gradients.std(axis=0) / np.sqrt(len(gradients))
    assert jnp.abs(gradients.mean(axis=0) / jnp.maximum(standard_error, 1e-9)).max() < 5.5


def test_only_classes_of_a_whole_image_can_be_listed(key):
    built = tasks.build(CONFIG)
    assert [kind for kind, task in built.items() if task.log_probabilities] == ["classification"]
    listed = built["classification"].log_probabilities(jax.random.normal(key, (2, 3)))
    np.testing.assert_allclose(jnp.exp(listed).sum(axis=-1), 1.0, rtol=1e-6)


def test_classes_that_are_no_names_are_refused():
    with pytest.raises(UserError, match=r"tasks\.seg\.classes: expected names, in letters or digits, found 1"):
        tasks.build({"seg": {"kind": "segmentation", "classes": (1, 2)}})


def test_a_setting_of_another_type_is_refused():
    with pytest.raises(UserError, match=r"config\.tasks\.seg\.class_weights\[0\]: expected a number"):
        tasks.build({"seg": {"kind": "segmentation", "classes": ("a", "b"), "class_weights": ("c", "d")}})


@pytest.mark.parametrize("kind", tasks.KINDS)
def test_every_figure_of_a_kind_has_a_title(kind):
    figures = tasks.build({"t": CONFIG[kind]})["t"].new_metric().compute()
    assert [name for name in figures if tasks.title(name) == name] == []


def test_a_title_is_of_the_figure_and_its_class():
    assert tasks.title("map_75") == "mAP 75"
    assert tasks.title("iou/potted plant") == "IoU potted plant"
    assert tasks.title("loss") == "loss"
