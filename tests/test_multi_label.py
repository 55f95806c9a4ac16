"""Multi-label classification: loss by hand, unknown entries, distillation, average precision, caption."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from jax.test_util import check_grads
from sklearn.metrics import average_precision_score, f1_score

from mtl_jax.errors import UserError
from mtl_jax.tasks import multi_label
from mtl_jax.tasks.base import Geometry

SIZE = (32, 32)
GEOMETRY = Geometry(1.0, 1.0, 0.0, 0.0, 32, 32)
CLASSES = ("ant", "bee", "cat")
task = multi_label.MultiLabel("tags", CLASSES)
loss_and_gradient = jax.jit(jax.value_and_grad(lambda raw, label: task.loss(raw, {"label": label}, image_size=SIZE)[0]))


def logit(probability):
    return jnp.log(jnp.array(probability)) - jnp.log1p(-jnp.array(probability))


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_loss_equals_hand_computed_value(weight):
    weighted = multi_label.MultiLabel("tags", CLASSES, positive_weight=weight)
    labels = {"label": jnp.array([[1.0, 0.0, jnp.nan]])}
    value, components = weighted.loss(logit([[0.25, 0.5, 0.9]]), labels, image_size=SIZE)
    np.testing.assert_allclose(value, (weight * np.log(4) + np.log(2)) / 2, rtol=1e-6)
    assert components["cross_entropy"] == value


def test_what_is_unknown_adds_neither_loss_nor_gradient(key):
    raw = jax.random.normal(key, (2, 3))
    value, gradient = loss_and_gradient(raw, jnp.full((2, 3), jnp.nan))
    assert value == 0
    assert not np.any(gradient)
    reference = jnp.array([[jnp.nan, 1.0, jnp.nan], [0.0, jnp.nan, jnp.nan]])
    _, gradient = loss_and_gradient(raw, reference)
    np.testing.assert_array_equal(gradient != 0, np.isfinite(reference))


def test_an_empty_batch_gives_exactly_zero():
    value, _ = task.loss(jnp.zeros((0, 3)), {"label": jnp.zeros((0, 3))}, image_size=SIZE)
    assert value == 0


def test_gradients_equal_finite_differences_and_stay_finite_for_huge_logits(key):
    raw, teacher = jax.random.normal(key, (2, 4, 3))
    labels = {"label": jnp.array([[0.0, 1.0, jnp.nan]] * 4)}
    check_grads(
        jax.jit(lambda raw: task.loss(raw, labels, image_size=SIZE)[0]), (raw,), order=1, modes="rev", rtol=1e-2
    )
    distil = jax.jit(lambda raw: task.distillation_loss(raw, teacher, image_size=SIZE))
    check_grads(distil, (raw,), order=1, modes="rev", rtol=1e-2)
    value, gradient = loss_and_gradient(jnp.full((4, 3), 1e4), labels["label"])
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


def test_distillation_equals_a_hand_computed_value():
    distance = task.distillation_loss(logit([[0.5, 0.25, 0.1]]), logit([[0.5, 0.5, 0.1]]), image_size=SIZE)
    np.testing.assert_allclose(distance, (0.5 * np.log(2) + 0.5 * np.log(2 / 3)) / 3, rtol=1e-5)


def test_half_precision_is_computed_in_single_precision(key):
    raw, label = jax.random.normal(key, (2, 3)).astype(jnp.bfloat16), jnp.ones((2, 3))
    value, _ = task.loss(raw, {"label": label}, image_size=SIZE)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, loss_and_gradient(raw.astype(jnp.float32), label)[0], rtol=1e-6)


def measured(probabilities, labels):
    metric = multi_label.MultiLabel("tags", tuple(str(i) for i in range(labels.shape[1]))).new_metric()
    for probability, label in zip(probabilities, labels, strict=True):
        metric.update({"probability": probability}, {"label": label}, GEOMETRY)
    return metric.compute()


def test_average_precision_equals_a_hand_computed_value():
    # By falling score: hit, miss, hit: (1/1 + 2/3) / 2.
    figures = measured(np.array([[0.9], [0.8], [0.3]]), np.array([[1.0], [0.0], [1.0]]))
    assert figures["map"] == pytest.approx(5 / 6)
    assert figures["f1"] == pytest.approx(2 / (2 + 1 + 1))


@pytest.mark.parametrize("seed", range(5))
def test_figures_equal_scikit_learn_s_with_ties_and_unknown_entries(seed):
    generator = np.random.default_rng(seed)
    probabilities = generator.integers(0, 8, (40, 4)) / 8  # many are equal
    labels = generator.choice([0.0, 1.0, np.nan], (40, 4), p=[0.5, 0.3, 0.2])
    labels[:, 3] = 0.0  # of no image: left out of the mean
    reference = np.isfinite(labels)
    figures = measured(probabilities, labels)
    expected = [
        average_precision_score(labels[reference[:, c], c], probabilities[reference[:, c], c]) for c in range(3)
    ]
    assert figures["map"] == pytest.approx(np.mean(expected), rel=1e-12)
    assert figures["f1"] == pytest.approx(f1_score(labels[reference], probabilities[reference] > 0.5), rel=1e-12)


def test_without_labels_the_figures_are_nan():
    assert all(np.isnan(value) for value in task.new_metric().compute().values())
    assert all(np.isnan(value) for value in measured(np.ones((2, 3)), np.full((2, 3), np.nan)).values())


def test_labels_of_another_number_of_classes_are_refused():
    with pytest.raises(UserError, match=r"'tags': expected a label for each of 3 classes, found \(4,\)"):
        task.new_metric().update({"probability": np.ones(3)}, {"label": np.ones(4)}, GEOMETRY)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ()}, "at least 1 class"),
        ({"classes": CLASSES, "strides": (16, 32)}, "one stride"),
        ({"classes": CLASSES, "positive_weight": 0.0}, "positive_weight: expected more than 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        multi_label.MultiLabel("tags", **settings)


@pytest.mark.parametrize(
    ("probability", "expected"), [([0.6, 0.1, 0.9], "cat 90%\nant 60%"), ([0.5, 0.1, 0.2], "no class above 50%")]
)
def test_the_caption_lists_the_classes_that_are_said_to_be_true(probability, expected):
    figure, axes = plt.subplots()
    prediction = task.decode(logit([probability]))
    task.draw(axes, {"probability": np.asarray(prediction["probability"][0])})
    assert [text.get_text() for text in axes.texts] == [expected]
    plt.close(figure)
