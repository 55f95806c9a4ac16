"""Regression: loss by hand in units of its scale, missing labels, errors in the labels' unit."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from jax.test_util import check_grads

from mtl_jax.errors import UserError
from mtl_jax.tasks import regression
from mtl_jax.tasks.base import Geometry

SIZE = (32, 32)
GEOMETRY = Geometry(1.0, 1.0, 0.0, 0.0, 32, 32)
AGE = regression.Regression("age", center=30.0, scale=10.0, unit="years")
SQUARED = regression.Regression("age", cost="l2", center=30.0, scale=10.0)


@pytest.mark.parametrize(("task", "expected"), [(AGE, (0.5 + 2.0) / 2), (SQUARED, (0.25 + 4.0) / 2)])
def test_loss_equals_hand_computed_value(task, expected):
    raw, labels = jnp.array([[0.5], [-1.0]]), {"value": jnp.array([40.0, 40.0])}  # 35 and 20 years
    value, components = task.loss(raw, labels, image_size=SIZE)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert list(components.values()) == [value]


def test_missing_labels_add_neither_loss_nor_gradient():
    raw = jnp.array([[0.5], [-1.0], [2.0]])
    loss = jax.value_and_grad(lambda raw, value: AGE.loss(raw, {"value": value}, image_size=SIZE)[0])
    value, gradient = loss(raw, jnp.full(3, jnp.nan))
    assert value == 0
    assert not np.any(gradient)
    value, gradient = loss(raw, jnp.array([jnp.nan, 40.0, jnp.nan]))
    np.testing.assert_allclose(value, 2.0)
    np.testing.assert_array_equal(gradient[:, 0] != 0, [False, True, False])


def test_gradients_equal_finite_differences(key):
    raw = jax.random.normal(key, (4, 1))
    labels = {"value": jnp.array([25.0, jnp.nan, 50.0, 31.0])}
    loss = jax.jit(lambda raw: SQUARED.loss(raw, labels, image_size=SIZE)[0])
    check_grads(loss, (raw,), order=1, modes="rev", rtol=1e-2)


def test_an_untrained_network_says_the_center_and_outputs_are_in_the_labels_unit():
    np.testing.assert_allclose(AGE.finish(jnp.array([[0.0], [1.5]]), SIZE), [30.0, 45.0])


def test_errors_are_in_the_labels_unit_and_leave_unlabelled_images_out():
    metric = AGE.new_metric()
    assert np.isnan(metric.compute()["mae"])
    for output, truth in ((30.0, 27.0), (50.0, 51.0), (10.0, np.nan)):
        metric.update({"value": np.array(output)}, {"value": np.array(truth)}, GEOMETRY)
    figures = metric.compute()
    assert figures["mae"] == pytest.approx(2.0)
    assert figures["rmse"] == pytest.approx(np.sqrt(5.0))
    assert AGE.main_metric == "mae"
    assert not AGE.higher_is_better


def test_the_caption_has_the_unit():
    figure, axes = plt.subplots()
    AGE.draw(axes, {"value": np.array(34.25)})
    assert [text.get_text() for text in axes.texts] == ["age 34.25 years"]
    plt.close(figure)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cost": "l3"}, "cost: expected one of l1, l2"),
        ({"scale": 0.0}, "scale: expected more than 0"),
        ({"strides": ()}, "one stride"),
    ],
)
def test_mistakes_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        regression.Regression("age", **settings)
