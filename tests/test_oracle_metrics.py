"""Losses and metrics against independent implementations: PyTorch and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.tasks import classification, segmentation
from mtl_jax.tasks.base import Geometry

CLASSES = [f"class {i}" for i in range(5)]


def test_mean_iou_equals_scikit_learns_confusion_matrix_and_jaccard_score():
    metrics = pytest.importorskip("sklearn.metrics")
    numbers = np.random.default_rng(0)
    metric = segmentation.make("seg", CLASSES).new_metric()
    truths, predictions = [], []
    for _ in range(3):
        truth = numbers.integers(0, 5, (9, 11))
        prediction = np.where(numbers.random((9, 11)) < 0.6, truth, numbers.integers(0, 5, (9, 11)))
        truth = np.where(numbers.random((9, 11)) < 0.1, 255, truth)
        metric.update({"mask": prediction}, {"mask": truth}, Geometry(1.0, 1.0, 0.0, 0.0, 9, 11))
        truths.append(truth[truth != 255])
        predictions.append(prediction[truth != 255])
    truth, prediction = np.concatenate(truths), np.concatenate(predictions)
    np.testing.assert_array_equal(metric.confusion, metrics.confusion_matrix(truth, prediction))
    figures = metric.compute()
    np.testing.assert_allclose(figures["miou"], metrics.jaccard_score(truth, prediction, average="macro"))
    np.testing.assert_allclose(figures["pixel_accuracy"], metrics.accuracy_score(truth, prediction))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_weights", [None, [0.5, 1.0, 2.0, 0.1, 3.0]])
def test_segmentation_loss_and_gradient_equal_pytorchs(label_smoothing, class_weights):
    torch = pytest.importorskip("torch")
    numbers = np.random.default_rng(1)
    raw = numbers.normal(size=(2, 3, 4, 5)).astype(np.float32)
    mask = numbers.integers(0, 6, (2, 24, 32))
    mask = np.where(mask == 5, 255, mask)
    task = segmentation.make(
        "seg", CLASSES, label_smoothing=label_smoothing, class_weights=class_weights, loss_stride=1
    )
    value, gradient = jax.value_and_grad(lambda raw: task.loss(raw, {"mask": jnp.array(mask)}, image_size=(24, 32))[0])(
        jnp.array(raw)
    )

    theirs = torch.tensor(raw.transpose(0, 3, 1, 2), requires_grad=True)
    logits = torch.nn.functional.interpolate(theirs, scale_factor=8, mode="bilinear", align_corners=False)
    weight = None if class_weights is None else torch.tensor(class_weights)
    expected = torch.nn.functional.cross_entropy(
        logits, torch.tensor(mask), weight=weight, ignore_index=255, label_smoothing=label_smoothing
    )
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad.numpy().transpose(0, 2, 3, 1), atol=1e-6)
    np.testing.assert_allclose(
        task.finish(jnp.array(raw), image_size=(24, 32)),
        logits.detach().numpy().transpose(0, 2, 3, 1),
        atol=1e-5,
    )


def test_classification_loss_and_distillation_equal_pytorchs():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    numbers = np.random.default_rng(2)
    raw, teacher = numbers.normal(size=(2, 6, 5)).astype(np.float32)
    label = np.array([0, 4, -1, 2, 2, -1])
    task = classification.make("cls", CLASSES, label_smoothing=0.1, distillation_temperature=3.0)
    value, _ = task.loss(jnp.array(raw), {"label": jnp.array(label)}, image_size=(32, 32))
    expected = functional.cross_entropy(torch.tensor(raw), torch.tensor(label), ignore_index=-1, label_smoothing=0.1)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    distilled = task.distillation_loss(jnp.array(raw), jnp.array(teacher), image_size=(32, 32))
    soft = [functional.log_softmax(torch.tensor(logits) / 3, dim=-1) for logits in (raw, teacher)]
    expected = 9 * functional.kl_div(*soft, reduction="batchmean", log_target=True)
    np.testing.assert_allclose(distilled, expected.item(), rtol=1e-5)
