"""Segmentation: loss by hand, void and missing masks, resolution, mean IoU at the original size, overlay."""

import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from jax.test_util import check_grads

from mtl_jax.errors import UserError
from mtl_jax.tasks import segmentation
from mtl_jax.tasks.base import Geometry

CLASSES = ("background", "cat", "dog")
SIZE = (16, 24)
VOID = 255


def make(**options):
    return segmentation.Segmentation("seg", CLASSES, **options)


@functools.cache
def compiled(size, **options):
    task = make(**options)
    return jax.jit(jax.value_and_grad(lambda raw, mask: task.loss(raw, {"mask": mask}, image_size=size)[0]))


def loss_of(raw, mask, size=SIZE, **options):
    return compiled(size, **options)(raw, jnp.asarray(mask))[0]


def random_case(key, batch=2):
    raw_key, mask_key = jax.random.split(key)
    raw = jax.random.normal(raw_key, (batch, 2, 3, 3))
    mask = jax.random.randint(mask_key, (batch, *SIZE), 0, 4)
    return raw, jnp.where(mask == 3, VOID, mask)


def test_loss_equals_hand_computed_value():
    # One cell, so that every pixel has its probabilities 1/8, 2/8, 5/8.
    raw = jnp.log(jnp.array([1.0, 2.0, 5.0])).reshape(1, 1, 1, 3)
    mask = np.full((1, 8, 8), VOID)
    mask[0, 0, :3] = [0, 1, 2]
    costs = np.log([8, 4, 8 / 5])
    np.testing.assert_allclose(loss_of(raw, mask, (8, 8), loss_stride=1), costs.mean(), rtol=1e-6)
    weighted = loss_of(raw, mask, (8, 8), loss_stride=1, class_weights=(1.0, 2.0, 5.0))
    np.testing.assert_allclose(weighted, costs @ [1, 2, 5] / 8, rtol=1e-6)
    smooth = loss_of(raw, mask, (8, 8), loss_stride=1, label_smoothing=0.3)
    np.testing.assert_allclose(smooth, costs.mean(), rtol=1e-6)  # each class occurs once: its mean is the same
    mask[0, 0, 1:3] = VOID
    smooth = loss_of(raw, mask, (8, 8), loss_stride=1, label_smoothing=0.3)
    np.testing.assert_allclose(smooth, 0.7 * costs[0] + 0.3 * costs.mean(), rtol=1e-6)


def test_logits_are_interpolated_between_the_centres_of_cells():
    raw = jnp.array([0.0, 8.0]).reshape(1, 1, 2, 1) * jnp.array([0.0, 1.0, 0.0]).reshape(1, 1, 1, 3)
    logits = make().finish(raw, image_size=(8, 16))
    assert logits.shape == (1, 8, 16, 3)
    # Cells' centres lie at 4 and 12 px: pixel 4 (centre 4.5) is 1/16 of the way; beyond them values are held.
    np.testing.assert_allclose(logits[0, 3, :, 1], [0] * 4 + list(np.arange(0.5, 8)) + [8] * 4, atol=1e-5)


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_the_mask_is_the_best_class_of_the_interpolated_logits(key, stride):
    raw = jax.random.normal(key, (2, 3, 5, 6)).at[..., 4].set(-9.0).at[0, ..., 5].set(9.0).at[0, ..., 2].set(9.0)
    size = 3 * stride - 1, 5 * stride - 3
    task = segmentation.Segmentation("seg", tuple("abcdef"), strides=(stride,))
    mask = task.predictions(raw, size)["mask"]
    assert mask.shape == (2, *size)
    assert mask.dtype == jnp.int32
    np.testing.assert_array_equal(mask[0], 2)  # the first of equals
    np.testing.assert_array_equal(mask, task.decode(task.finish(raw, size))["mask"])


@pytest.mark.parametrize("loss_stride", [1, 2, 4, 8])
def test_the_loss_compares_the_interpolated_logits_with_the_pixels_at_its_stride(key, loss_stride):
    raw, mask = random_case(key)
    logits = jax.image.resize(raw, (2, 16 // loss_stride, 24 // loss_stride, 3), "linear")
    log_p = np.asarray(logits) - np.log(np.exp(np.asarray(logits)).sum(axis=-1, keepdims=True))
    mask = np.asarray(mask)
    costs = []
    for index in np.ndindex(log_p.shape[:3]):
        label = int(mask[index[0], *(loss_stride * i + loss_stride // 2 for i in index[1:])])
        costs += [-log_p[*index, label]] if label != VOID else []
    np.testing.assert_allclose(loss_of(raw, mask, loss_stride=loss_stride), np.mean(costs), rtol=1e-5)


def test_void_and_missing_masks_add_neither_loss_nor_gradient(key):
    raw, mask = random_case(key)
    value_and_grad = compiled(SIZE, class_weights=(1.0, 2.0, 3.0))
    value, gradient = value_and_grad(raw, jnp.full_like(mask, VOID))
    assert value == 0
    assert not np.any(gradient)
    value, gradient = value_and_grad(raw, mask.at[1].set(VOID))
    assert not np.any(gradient[1])
    assert np.any(gradient[0])
    np.testing.assert_allclose(value, loss_of(raw[:1], mask[:1], class_weights=(1.0, 2.0, 3.0)), rtol=1e-6)


def test_the_dice_loss_is_one_less_overlap_over_size_averaged_over_the_classes_shown():
    rng = np.random.default_rng(4)
    raw = jnp.asarray(rng.normal(size=(2, 4, 6, 3)), jnp.float32)
    mask = jnp.asarray(rng.choice([0, 2, 255], size=(2, 32, 48)), jnp.int32)  # class 1 is nowhere
    task = make(loss_stride=8, dice_weight=0.5)
    terms = jax.jit(lambda raw, mask: task.loss(raw, {"mask": mask}, image_size=(32, 48)))(raw, mask)
    observed = np.asarray(mask)[:, 4::8, 4::8]
    p = np.asarray(jax.nn.softmax(raw)) * (observed != 255)[..., None]
    shares = [1 - 2 * p[observed == c][:, c].sum() / ((observed == c).sum() + p[..., c].sum()) for c in (0, 2)]
    assert float(terms[1]["dice"]) == pytest.approx(np.mean(shares), rel=1e-5)
    assert float(terms[0]) == pytest.approx(float(terms[1]["cross_entropy"]) + 0.5 * np.mean(shares), rel=1e-5)


def test_the_dice_loss_of_a_perfect_mask_is_zero_and_of_void_alone_is_nothing_to_learn_from():
    task = make(loss_stride=8, dice_weight=1.0)
    mask = jnp.asarray(np.repeat(np.repeat([[[0, 1], [1, 0]]], 8, axis=1), 8, axis=2), jnp.int32)
    raw = 50.0 * jax.nn.one_hot(mask[:, ::8, ::8], 3)

    @functools.partial(jax.jit, static_argnums=0)
    @functools.partial(jax.value_and_grad, argnums=1, has_aux=True)
    def loss(term, raw, mask):
        total, terms = task.loss(raw, {"mask": mask}, image_size=(16, 16))
        return terms.get(term, total), terms

    (dice, _), _ = loss("dice", raw, mask)
    assert float(dice) == pytest.approx(0.0, abs=1e-6)
    _, gradient = loss("total", raw, np.full_like(mask, VOID))
    assert not gradient.any()


def test_a_class_of_weight_zero_alone_gives_no_loss():
    value = loss_of(jnp.ones((1, 2, 3, 3)), np.zeros((1, *SIZE), int), class_weights=(0.0, 1.0, 1.0))
    assert value == 0


def test_loss_does_not_depend_on_the_order_of_the_batch(key):
    raw, mask = random_case(key, batch=3)
    order = jnp.array([2, 0, 1])
    np.testing.assert_allclose(loss_of(raw, mask), loss_of(raw[order], mask[order]), rtol=1e-6)


def test_gradients_equal_finite_differences(key):
    raw, mask = random_case(key)
    options = {"label_smoothing": 0.1, "class_weights": (0.5, 1.0, 2.0)}
    loss = jax.jit(lambda raw: make(**options).loss(raw, {"mask": mask}, image_size=SIZE)[0])
    check_grads(loss, (raw,), order=1, modes="rev", rtol=1e-2)


def test_a_border_that_fills_no_whole_cell_is_cut_off(key):
    raw, mask = random_case(key)
    outputs = make().finish(raw, image_size=(13, 20))
    np.testing.assert_array_equal(outputs, make().finish(raw, image_size=SIZE)[:, :13, :20])
    padded = mask.at[:, 13:].set(VOID).at[:, :, 20:].set(VOID)
    np.testing.assert_allclose(
        loss_of(raw, mask[:, :13, :20], (13, 20), loss_stride=1),
        loss_of(raw, padded, loss_stride=1),
        rtol=1e-6,
    )


def test_distillation_equals_a_hand_computed_value():
    task = make(distillation_temperature=2.0)
    raw = jnp.broadcast_to(2 * jnp.log(jnp.array([0.5, 0.25, 0.25])), (1, 2, 3, 3))
    teacher = jnp.broadcast_to(2 * jnp.log(jnp.array([0.25, 0.25, 0.5])), (1, 2, 3, 3))
    expected = 4 * (0.25 * np.log(0.5) + 0.5 * np.log(2))
    np.testing.assert_allclose(task.distillation_loss(raw, teacher, image_size=SIZE), expected, rtol=1e-5)


def identity(height, width):
    return Geometry(1.0, 1.0, 0.0, 0.0, height, width)


def test_mean_iou_equals_hand_computed_values():
    metric = make().new_metric()
    truth = np.array([[0, 0, 1, 1, VOID]], np.uint8)
    metric.update({"mask": np.array([[0, 1, 1, 1, 2]])}, {"mask": truth}, identity(1, 5))
    figures = metric.compute()
    # The dog is predicted on void alone, so that it occurs nowhere.
    np.testing.assert_allclose(figures["miou"], (1 / 2 + 2 / 3) / 2)
    np.testing.assert_allclose(figures["pixel_accuracy"], 3 / 4)
    np.testing.assert_allclose(figures["iou/cat"], 2 / 3)
    assert np.isnan(figures["iou/dog"])


def test_mean_iou_comes_from_one_confusion_matrix_not_from_a_mean_over_images():
    metric = make().new_metric()
    metric.update({"mask": np.array([[0, 0, 0, 0]])}, {"mask": np.array([[0, 0, 0, 1]])}, identity(1, 4))
    metric.update({"mask": np.array([[1]])}, {"mask": np.array([[1]])}, identity(1, 1))
    np.testing.assert_allclose(metric.compute()["miou"], (3 / 4 + 1 / 2) / 2)


def test_a_wrong_class_that_is_in_no_target_lowers_the_mean():
    metric = make().new_metric()
    metric.update({"mask": np.array([[0, 2]])}, {"mask": np.array([[0, 0]])}, identity(1, 2))
    np.testing.assert_allclose(metric.compute()["miou"], (1 / 2 + 0) / 2)


def test_without_labelled_pixels_the_figures_are_nan():
    metric = make().new_metric()
    metric.update({"mask": np.zeros((2, 2), int)}, {"mask": np.full((2, 2), VOID)}, identity(2, 2))
    assert np.isnan(metric.compute()["miou"])
    assert np.isnan(metric.compute()["pixel_accuracy"])


def test_the_metric_looks_predictions_up_through_the_letterbox():
    # Original 4 x 8, halved to 2 x 4, placed 1 px from the top of a 4 x 4 input; the padding is called dog.
    prediction = np.array([[2, 2, 2, 2], [0, 0, 1, 1], [0, 1, 1, 0], [2, 2, 2, 2]])
    geometry = Geometry(0.5, 0.5, 0.0, 1.0, 4, 8)
    truth = prediction[1:3].repeat(2, axis=0).repeat(2, axis=1)
    metric = make().new_metric()
    metric.update({"mask": prediction}, {"mask": truth}, geometry)
    assert metric.compute()["miou"] == 1
    assert metric.confusion.sum() == 32


def test_broken_targets_are_refused():
    metric = make().new_metric()
    with pytest.raises(UserError, match=r"mask of 2 x 2 px .* found \(3, 2\)"):
        metric.update({"mask": np.zeros((2, 2), int)}, {"mask": np.zeros((3, 2), int)}, identity(2, 2))
    with pytest.raises(UserError, match="below 3 or 255"):
        metric.update({"mask": np.zeros((2, 2), int)}, {"mask": np.full((2, 2), 7)}, identity(2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ("cat",)}, "at least 2 classes"),
        ({"strides": (8, 16)}, "one stride"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"class_weights": (1.0,)}, "3 class_weights"),
        ({"class_weights": (1.0, -1.0, 1.0)}, r"class_weights\[1\]: expected at least 0"),
        ({"ignore_label": 2}, "ignore_label outside the classes"),
        ({"dice_weight": -0.5}, "dice_weight: expected at least 0"),
        ({"loss_stride": 3}, "loss_stride that divides 8"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        segmentation.Segmentation("seg", **({"classes": CLASSES} | options))


def test_the_palette_is_that_of_pascal_voc():
    colours = (segmentation.palette(21) * 255).astype(int)
    published = {0: [0, 0, 0], 1: [128, 0, 0], 2: [0, 128, 0], 15: [192, 128, 128], 20: [0, 64, 128]}
    np.testing.assert_array_equal(colours[list(published)], list(published.values()))
    assert len({tuple(colour) for colour in segmentation.palette(255)}) == 255


def test_the_overlay_shows_the_classes_present_and_leaves_background_clear():
    figure, axes = plt.subplots()
    make().draw(axes, {"mask": np.array([[0, 0], [0, 2]])})
    overlay = axes.images[0].get_array()
    assert overlay[0, 0, 3] == 0
    assert overlay[1, 1, 3] == segmentation.OVERLAY_OPACITY
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["dog"]
    make().draw(axes, {"mask": np.zeros((2, 2), int)})
    plt.close(figure)


def test_void_is_255_unless_255_is_a_class():
    assert segmentation.Segmentation("seg", ("a", "b")).void == 255
    many = segmentation.Segmentation("seg", tuple(str(number) for number in range(256)))
    assert many.void == 65535
    metric = many.new_metric()
    metric.update({"mask": np.array([[255, 0]])}, {"mask": np.array([[255, 65535]], np.uint16)}, identity(1, 2))
    assert metric.compute()["pixel_accuracy"] == 1
