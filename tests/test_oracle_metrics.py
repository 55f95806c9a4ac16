"""Losses and metrics against independent implementations: PyTorch, scikit-learn and pycocotools' own readers."""

import contextlib
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mtl_jax.data.sources import registry
from mtl_jax.tasks import classification, detection, segmentation
from mtl_jax.tasks.base import Geometry

CLASSES = tuple(f"class {i}" for i in range(5))


def test_mean_iou_equals_scikit_learns_confusion_matrix_and_jaccard_score():
    metrics = pytest.importorskip("sklearn.metrics")
    numbers = np.random.default_rng(0)
    metric = segmentation.Segmentation("seg", CLASSES).new_metric()
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


@pytest.mark.parametrize("seed", range(4))
def test_mean_iou_leaves_out_void_and_classes_that_occur_nowhere_as_scikit_learns_matrix_shows(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    numbers = np.random.default_rng(seed)
    shown, guessed = numbers.choice(5, 2, replace=False), numbers.choice(5, 3, replace=False)  # others are absent
    metric = segmentation.Segmentation("seg", CLASSES).new_metric()
    truths, predictions = [], []
    for void in (0.0, 0.3, 1.0):  # the last image is void alone
        truth = np.where(numbers.random((7, 8)) < void, 255, numbers.choice(shown, (7, 8)))
        prediction = np.where(numbers.random((7, 8)) < 0.5, truth % 5, numbers.choice(guessed, (7, 8)))
        metric.update({"mask": prediction}, {"mask": truth}, Geometry(1.0, 1.0, 0.0, 0.0, 7, 8))
        truths.append(truth[truth != 255])
        predictions.append(prediction[truth != 255])
    matrix = metrics.confusion_matrix(np.concatenate(truths), np.concatenate(predictions), labels=range(5))
    hits, union = np.diag(matrix), matrix.sum(axis=0) + matrix.sum(axis=1) - np.diag(matrix)
    figures = metric.compute()
    np.testing.assert_allclose(figures["miou"], np.mean(hits[union > 0] / union[union > 0]))
    np.testing.assert_allclose(figures["pixel_accuracy"], hits.sum() / matrix.sum())
    by_class = [figures[f"iou/{name}"] for name in CLASSES]
    np.testing.assert_allclose(by_class, [h / u if u else np.nan for h, u in zip(hits, union, strict=True)])


def random_coco(numbers: np.random.Generator) -> tuple[dict, list[dict]]:
    """A COCO file and detections: crowds, images and a class without boxes, equal scores, over 100 detections."""
    categories = [{"id": number, "name": f"kind {number}"} for number in (3, 18, 90)]  # of the last there is no box
    images = [{"id": number, "file_name": f"{number}.png", "width": 200, "height": 120} for number in (5, 8, 13, 21)]
    annotations, detections = [], []
    for image in images[:-1]:
        for _ in range(int(numbers.integers(3, 9))):
            corner = numbers.uniform(0, 60, 2)
            bbox = [*corner.tolist(), *numbers.uniform(4, 55, 2).tolist()]
            crowd = int(numbers.random() < 0.25)
            entry = {"image_id": image["id"], "category_id": int(numbers.choice([3, 18])), "bbox": bbox}
            area = 0.7 * bbox[2] * bbox[3]  # as of an outline, which decides the size
            annotations.append(entry | {"id": len(annotations) + 1, "iscrowd": crowd, "area": area})
            for _ in range(20):
                moved = np.maximum(np.array(bbox) + numbers.normal(0, 3, 4), 1).tolist()
                score = float(numbers.choice([0.2, 0.5, 0.5, 0.9, numbers.random()]))
                detections.append(entry | {"bbox": moved, "score": score})
    extra = {"bbox": [1.0, 1.0, 30.0, 30.0], "score": 0.7}
    detections += [{"image_id": 21, "category_id": 3, **extra}, {"image_id": 5, "category_id": 90, **extra}]
    return {"images": images, "annotations": annotations, "categories": categories}, detections


@pytest.mark.parametrize("seed", range(4))
def test_mean_average_precision_from_a_coco_file_equals_that_of_pycocotools_own_readers(seed, tmp_path):
    content, detections = random_coco(np.random.default_rng(seed))
    folder = tmp_path / "mini-coco-det"
    (folder / "annotations").mkdir(parents=True)
    (folder / "val").mkdir()
    file = folder / "annotations/instances_val.json"
    file.write_text(json.dumps(content))
    source = registry.build("coco_detection", data_root=tmp_path, split="val")
    metric = detection.Detection("det", source.class_names["detection"]).new_metric()
    labels = {category["id"]: label for label, category in enumerate(content["categories"])}
    most = 0
    for sample_index, image in enumerate(content["images"]):
        Image.new("RGB", (200, 120)).save(folder / "val" / image["file_name"])
        actual = [entry for entry in detections if entry["image_id"] == image["id"]]
        boxes = np.array([entry["bbox"] for entry in actual]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        prediction = {
            "boxes_xyxy": boxes,
            "score": np.array([entry["score"] for entry in actual]),
            "label": np.array([labels[entry["category_id"]] for entry in actual], int),
            "valid": np.ones(len(actual), bool),
        }
        most = max(most, len(actual))
        metric.update(prediction, source[sample_index]["labels"]["detection"], Geometry(1.0, 1.0, 0.0, 0.0, 120, 200))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        judge = COCOeval(truth, truth.loadRes(detections), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert most > 100
    assert any(entry["iscrowd"] for entry in content["annotations"])
    expected = [np.nan if value < 0 else value for value in judge.stats[:6]]
    assert expected[0] > 0.05
    np.testing.assert_allclose(list(metric.compute().values()), expected, rtol=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_weights", [None, (0.5, 1.0, 2.0, 0.1, 3.0)])
def test_segmentation_loss_and_gradient_equal_pytorchs(label_smoothing, class_weights):
    torch = pytest.importorskip("torch")
    numbers = np.random.default_rng(1)
    raw = numbers.normal(size=(2, 3, 4, 5)).astype(np.float32)
    mask = numbers.integers(0, 6, (2, 24, 32))
    mask = np.where(mask == 5, 255, mask)
    task = segmentation.Segmentation(
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
    task = classification.Classification("cls", CLASSES, label_smoothing=0.1, distillation_temperature=3.0)
    value, _ = task.loss(jnp.array(raw), {"label": jnp.array(label)}, image_size=(32, 32))
    expected = functional.cross_entropy(torch.tensor(raw), torch.tensor(label), ignore_index=-1, label_smoothing=0.1)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    distilled = task.distillation_loss(jnp.array(raw), jnp.array(teacher), image_size=(32, 32))
    soft = [functional.log_softmax(torch.tensor(logits) / 3, dim=-1) for logits in (raw, teacher)]
    expected = 9 * functional.kl_div(*soft, reduction="batchmean", log_target=True)
    np.testing.assert_allclose(distilled, expected.item(), rtol=1e-5)
