"""Classification: loss by hand, missing labels, distillation, top-k, caption."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from jax.test_util import check_grads

from mtl_jax.errors import UserError
from mtl_jax.tasks import classification
from mtl_jax.tasks.base import Geometry

SIZE = (32, 32)
GEOMETRY = Geometry(1.0, 1.0, 0.0, 0.0, 32, 32)
CLASSES = ("ant", "bee", "cat")
task = classification.Classification("cls", CLASSES)
loss_and_gradient = jax.jit(jax.value_and_grad(lambda raw, label: task.loss(raw, {"label": label}, image_size=SIZE)[0]))


def test_loss_equals_hand_computed_value():
    raw = jnp.array([[0.0, np.log(2), np.log(5)]])  # probabilities 1/8, 2/8, 5/8
    value, components = task.loss(raw, {"label": jnp.array([1])}, image_size=SIZE)
    np.testing.assert_allclose(value, np.log(4), rtol=1e-6)
    assert components["cross_entropy"] == value


def test_label_smoothing_spreads_the_target_over_all_classes():
    smooth = classification.Classification("cls", CLASSES, label_smoothing=0.3)
    raw = jnp.array([[0.0, np.log(2), np.log(5)]])
    value, _ = smooth.loss(raw, {"label": jnp.array([1])}, image_size=SIZE)
    costs = np.log([8, 4, 8 / 5])
    np.testing.assert_allclose(value, 0.1 * costs[0] + 0.8 * costs[1] + 0.1 * costs[2], rtol=1e-6)


def test_missing_labels_add_neither_loss_nor_gradient(key):
    raw = jax.random.normal(key, (3, 3))
    value, gradient = loss_and_gradient(raw, jnp.array([-1, -1, -1]))
    assert value == 0
    assert not np.any(gradient)
    value, gradient = loss_and_gradient(raw, jnp.array([-1, 2, -1]))
    alone, _ = loss_and_gradient(raw[1:2], jnp.array([2]))
    np.testing.assert_allclose(value, alone, rtol=1e-6)
    assert not np.any(gradient[0])
    assert not np.any(gradient[2])


def test_loss_does_not_depend_on_the_order_of_the_batch(key):
    raw, label, order = jax.random.normal(key, (4, 3)), jnp.array([0, -1, 2, 1]), jnp.array([2, 0, 3, 1])
    np.testing.assert_allclose(
        loss_and_gradient(raw, label)[0], loss_and_gradient(raw[order], label[order])[0], rtol=1e-6
    )


def test_gradients_equal_finite_differences(key):
    raw, teacher = jax.random.normal(key, (2, 4, 3))
    labels = {"label": jnp.array([0, -1, 2, 1])}
    loss = jax.jit(lambda raw: task.loss(raw, labels, image_size=SIZE)[0])
    check_grads(loss, (raw,), order=1, modes="rev", rtol=1e-2)
    distil = jax.jit(lambda raw: task.distillation_loss(raw, teacher, image_size=SIZE))
    check_grads(distil, (raw,), order=1, modes="rev", rtol=1e-2)


def test_distillation_is_zero_at_the_teacher_and_equals_a_hand_computed_value():
    raw = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
    teacher = jnp.log(jnp.array([[0.25, 0.25, 0.5]]))
    sharp = classification.Classification("cls", CLASSES, distillation_temperature=1.0)
    assert sharp.distillation_loss(raw, raw, image_size=SIZE) == 0
    expected = 0.25 * np.log(0.5) + 0.5 * np.log(2)
    np.testing.assert_allclose(sharp.distillation_loss(raw, teacher, image_size=SIZE), expected, rtol=1e-6)
    # Logits twice as large at temperature 2 are the same distributions; the factor is temperature².
    soft = classification.Classification("cls", CLASSES, distillation_temperature=2.0)
    np.testing.assert_allclose(soft.distillation_loss(2 * raw, 2 * teacher, image_size=SIZE), 4 * expected, rtol=1e-6)


def test_half_precision_is_computed_in_single_precision(key):
    raw = jax.random.normal(key, (2, 3)).astype(jnp.bfloat16)
    label = jnp.array([0, 1])
    value, _ = task.loss(raw, {"label": label}, image_size=SIZE)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, loss_and_gradient(raw.astype(jnp.float32), label)[0], rtol=1e-6)
    assert task.finish(raw, image_size=SIZE).dtype == jnp.float32


def test_top_accuracies_count_ranks():
    metric = classification.Classification("cls", tuple(str(i) for i in range(7))).new_metric()
    probability = np.array([0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05])
    for label in (0, 1, 4, 5, -1):  # ranks 0, 1, 4, 5; missing
        metric.update({"probability": probability}, {"label": np.int32(label)}, GEOMETRY)
    assert metric.compute() == {"top1": 0.25, "top5": 0.75}


def test_top5_is_left_out_where_it_says_nothing():
    metric = task.new_metric()
    assert list(metric.compute()) == ["top1"]
    assert np.isnan(metric.compute()["top1"])


def test_a_label_outside_the_table_is_refused():
    with pytest.raises(UserError, match="'cls': expected labels below 3, found 3"):
        task.new_metric().update({"probability": np.ones(3) / 3}, {"label": np.int32(3)}, GEOMETRY)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ("only",)}, "at least 2 classes"),
        ({"classes": CLASSES, "strides": (16, 32)}, "one stride"),
        ({"classes": CLASSES, "label_smoothing": 1.0}, "label_smoothing"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        classification.Classification("cls", **settings)


def test_the_caption_lists_the_most_probable_classes():
    figure, axes = plt.subplots()
    prediction = task.decode(jnp.log(jnp.array([[0.2, 0.7, 0.1]])))
    task.draw(axes, {"probability": np.asarray(prediction["probability"][0])})
    assert [text.get_text() for text in axes.texts] == ["bee 70%\nant 20%\ncat 10%"]
    plt.close(figure)
