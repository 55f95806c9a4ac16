"""Depth: every cost by hand, missing pixels, positive outputs, errors at the original size, the map over the image."""

import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from jax.test_util import check_grads

from mtl_jax.errors import UserError
from mtl_jax.tasks import depth
from mtl_jax.tasks.base import Geometry

SIZE = (16, 24)
COSTS = tuple(depth.COSTS)
NAN = np.nan


def make(**options):
    return depth.Depth("depth", **({"center": 2.0} | options))


@functools.cache
def compiled(**options):
    task = make(**options)
    return jax.jit(jax.value_and_grad(lambda raw, labels: task.loss(raw, {"depth": labels}, image_size=SIZE)[0]))


def random_case(key):
    keys = jax.random.split(key, 3)
    raw = 0.3 * jax.random.normal(keys[0], (2, 2, 3, 1))
    labels = jax.random.uniform(keys[1], (2, *SIZE), minval=0.5, maxval=9.0)
    return raw, jnp.where(jax.random.bernoulli(keys[2], 0.3, labels.shape), NAN, labels)


def four_pixels(*depths):
    """Two images whose loss sees two pixels each, of which the network says 1, 2, 2 and 4 m."""
    raw = jnp.log(jnp.array([0.5, 1.0, 1.0, 2.0])).reshape(2, 1, 2, 1)
    labels = jnp.repeat(jnp.repeat(jnp.array(depths).reshape(2, 1, 2), 8, axis=1), 8, axis=2)
    return raw, {"depth": labels}


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        ("l1", (0.0 + 0.1 + 3.0) / 3),
        ("berhu", (0.0 + 0.1 + (9 + 0.36) / 1.2) / 3),  # quadratic above 0.2 * 3 m
        # By image: half the square of the common error is forgiven; the second image has one pixel.
        ("log", ((np.log(2.1 / 2) ** 2 / 2 - np.log(2.1 / 2) ** 2 / 8) + np.log(7 / 4) ** 2 / 2) / 2),
    ],
)
def test_loss_equals_hand_computed_value(cost, expected):
    raw, labels = four_pixels(1.0, 2.1, NAN, 7.0)
    value, components = make(cost=cost, loss_stride=8).loss(raw, labels, image_size=(8, 16))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert components == {cost: value}


def test_depths_outside_the_range_count_as_missing():
    task = make(loss_stride=8, min_depth=0.5, max_depth=8.0)
    for value in (0.0, 0.4, 8.1, np.inf, -1.0):
        raw, labels = four_pixels(1.5, value, value, NAN)
        np.testing.assert_allclose(task.loss(raw, labels, image_size=(8, 16))[0], 0.5, rtol=1e-5)


@pytest.mark.parametrize("cost", COSTS)
def test_missing_depths_add_neither_loss_nor_gradient(cost, key):
    raw, labels = random_case(key)
    value_and_grad = compiled(cost=cost)
    value, gradient = value_and_grad(raw, jnp.full_like(labels, NAN))
    assert value == 0
    assert not np.any(gradient)
    value, gradient = value_and_grad(raw, labels.at[1].set(NAN))
    assert not np.any(gradient[1])
    assert np.any(gradient[0])
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(value, make(cost=cost).loss(raw[:1], {"depth": labels[:1]}, SIZE)[0], rtol=1e-5)


@pytest.mark.parametrize("cost", COSTS)
def test_a_perfect_depth_has_no_loss_and_its_gradient_is_finite(cost):
    value, gradient = compiled(cost=cost)(jnp.zeros((1, 2, 3, 1)), jnp.full((1, *SIZE), 2.0))
    np.testing.assert_allclose(value, 0.0, atol=1e-9)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("cost", ["l1", "log"])
def test_gradients_equal_finite_differences(cost, key):
    raw, labels = random_case(key)
    check_grads(lambda raw: compiled(cost=cost)(raw, labels)[0], (raw,), order=1, modes="rev", rtol=2e-2)


def test_the_reverse_huber_cost_pulls_harder_where_the_error_is_large_and_holds_its_threshold_still():
    output, truth = jnp.array([[[2.0, 5.0]]]), jnp.array([[[2.1, 2.0]]])
    gradient = jax.grad(depth.berhu)(output, truth, jnp.ones(output.shape, bool))
    np.testing.assert_allclose(gradient[0, 0], [-1 / 2, 3 / 0.6 / 2], rtol=1e-5)


def test_the_log_cost_forgives_half_of_a_common_factor():
    raw, labels = jnp.zeros((1, 2, 3, 1)), jnp.full((1, *SIZE), 2.0)
    value = compiled(cost="log")(raw + np.log(1.5), labels)[0]
    np.testing.assert_allclose(value, 0.5 * np.log(1.5) ** 2, rtol=1e-5)


@pytest.mark.parametrize("cost", COSTS)
def test_every_cost_leads_from_far_below_and_far_above_to_the_label(cost):
    labels = jnp.full((1, *SIZE), 6.0)
    for start in (-2.0, 2.0):
        raw = jnp.full((1, 2, 3, 1), start)
        for rate in np.linspace(0.2, 0.0, 40):
            raw -= rate * jnp.sign(compiled(cost=cost)(raw, labels)[1])
        np.testing.assert_allclose(make().finish(raw, SIZE), 6.0, rtol=0.05)


def test_depth_drawn_from_the_prediction_pulls_it_nowhere_on_average(key):
    raw = 0.3 * jax.random.normal(key, (1, 2, 3, 1))
    for cost in COSTS:
        task = make(cost=cost)
        gradient = jax.vmap(jax.grad(lambda raw, key, task=task: task.sampled_loss(raw, SIZE, key)), in_axes=(None, 0))
        rendered = jax.jit(gradient)(raw, jax.random.split(key, 1000))
        assert jnp.abs(rendered).max() > 0
        assert jnp.abs(rendered.mean(axis=0) / rendered.std(axis=0)).max() * np.sqrt(1000) < 5.5


def test_outputs_are_positive_within_their_range_and_interpolated_between_cells():
    task = make(min_depth=0.5, max_depth=8.0)
    output = task.finish(jnp.array([-50.0, 0.0, 200.0]).reshape(1, 1, 3, 1), (7, 20))
    assert output.shape == (1, 7, 20)
    assert output.min() == 0.5
    assert output.max() == 8.0
    output = task.finish(jnp.array([0.0, np.log(2.0)]).reshape(1, 1, 2, 1), (8, 16))
    # Cells' centres lie at 4 and 12 px; in between, equal steps are equal factors.
    np.testing.assert_allclose(output[0, 3, [0, 7, 8, 15]], [2.0, 2 * 2 ** (7 / 16), 2 * 2 ** (9 / 16), 4.0], rtol=1e-5)
    np.testing.assert_array_equal(task.decode(output)["depth"], output)


def identity(height, width):
    return Geometry(1.0, 1.0, 0.0, 0.0, height, width)


def test_errors_equal_hand_computed_values_over_all_pixels():
    metric = make().new_metric()
    assert all(np.isnan(value) for value in metric.compute().values())
    output = np.array([[1.0, 2.0, 3.0, 9.0]])
    metric.update({"depth": output}, {"depth": np.array([[1.0, 2.6, NAN, 12.0]])}, identity(1, 4))
    metric.update({"depth": np.array([[6.0]])}, {"depth": np.array([[3.0]])}, identity(1, 1))
    expected = {
        "abs_error": (0.0 + 0.6 + 3.0) / 3,
        "rel_error": (0.0 + 0.6 / 2.6 + 1.0) / 3,
        "rmse": np.sqrt((0.0 + 0.36 + 9.0) / 3),
        "delta_1": 1 / 3,  # factors 1, 1.3 and 2
        "delta_2": 2 / 3,
        "delta_3": 2 / 3,
    }
    assert metric.compute() == pytest.approx(expected)
    assert make().main_metric in expected
    assert not make().higher_is_better


def test_the_metric_looks_predictions_up_through_the_letterbox():
    # Original 4 x 8, halved to 2 x 4, placed 1 px from the top of a 4 x 4 input.
    output = np.array([[9.0] * 4, [1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0], [9.0] * 4])
    metric = make().new_metric()
    truth = output[1:3].repeat(2, axis=0).repeat(2, axis=1)
    metric.update({"depth": output}, {"depth": truth}, Geometry(0.5, 0.5, 0.0, 1.0, 4, 8))
    assert metric.compute()["abs_error"] == 0
    assert metric.compute()["delta_1"] == 1
    with pytest.raises(UserError, match=r"'depth': expected a depth map of 4 x 8 px .* found \(8, 4\)"):
        metric.update({"depth": output}, {"depth": truth.T}, Geometry(0.5, 0.5, 0.0, 1.0, 4, 8))


def test_the_map_is_drawn_with_a_caption_in_metres():
    figure, axes = plt.subplots()
    make().draw(axes, {"depth": np.array([[0.75, 2.0], [3.0, 4.2]])})
    assert [text.get_text() for text in axes.texts] == ["depth 0.75 m (dark) to 4.2 m (bright)"]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0.75, 2.0], [3.0, 4.2]])
    plt.close(figure)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cost": "l2"}, "cost: expected one of l1, berhu, log"),
        ({"min_depth": 0.0}, r"0 < min_depth < center < max_depth, found 0\.0, 2\.0, 10\.0"),
        ({"center": 11.0}, "0 < min_depth < center < max_depth"),
        ({"strides": (8, 16)}, "one stride for depth"),
        ({"loss_stride": 3}, "loss_stride that divides 8"),
    ],
)
def test_mistakes_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        make(**options)
