"""Losses of a detector: from labelled boxes, by distillation, and with sampled labels."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mtl_jax.tasks import assignment, boxes
from mtl_jax.tasks.base import ImageSize, Labels
from mtl_jax.tasks.detection_cells import BOX_CHANNELS, OBJECTNESS, finish
from mtl_jax.tasks.distillation import rarity

UNLABELLED_LOGIT = -1e4  # of a class that nobody looked for: as good as impossible, and finite
LOG_FLOOR = 1e-6


def loss(
    raw: Float[Array, "batch cells channels"],
    labels: Labels,
    image_size: ImageSize,
    *,
    strides: tuple[int, ...],
    weights: Mapping[str, float],
    focal_exponent: float,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Complete-IoU loss of the boxes, quality-focal objectness, classes towards the IoU; per assigned cell.

    The objectness of an assigned cell learns the IoU that its box has at present, that of the others 0, so
    that the score says how well a box fits. Cells are assigned by `assignment.sim_ota`: like task alignment
    it lets the predictions decide, but its windows around the centres give even boxes smaller than a cell
    their candidates. Cells in a crowd's box that learn no object are left out, as are all cells of an image
    without labels. Where only some classes are labelled, the cells without a box learn that they show none of these,
    by `_absence`, and the others have no part in the loss.

    References:
        Li et al., "Generalized Focal Loss", 2020 (quality focal loss). Zheng et al., "Distance-IoU Loss",
        2020. Ge et al., "YOLOX: Exceeding YOLO Series in 2021", 2021.
    """
    outputs = finish(raw, image_size, strides)
    predicted = boxes.to_corners(outputs[..., :BOX_CHANNELS])
    objectness, class_logits = outputs[..., OBJECTNESS], outputs[..., OBJECTNESS + 1 :]
    target = _targets(jax.lax.stop_gradient(outputs), labels, image_size, strides)
    # Cells without a box compare their prediction with itself, which is 0 and has a finite gradient.
    own_box = jnp.where(target.positive[..., None], target.box, jax.lax.stop_gradient(predicted))
    quality = jnp.where(target.positive, jax.lax.stop_gradient(boxes.iou(predicted, own_box)), 0.0)
    focal = jnp.abs(quality - jax.nn.sigmoid(objectness)) ** focal_exponent
    class_target = jax.nn.one_hot(target.label, class_logits.shape[-1]) * quality[..., None]
    objectness_cost, class_cost = (
        focal * _cross_entropy(objectness, quality),
        _cross_entropy(class_logits, class_target),
    )
    if "labelled" in labels:
        labelled = jnp.asarray(labels["labelled"])[:, None]  # bool[batch, 1, classes]
        partly = ~target.positive & ~labelled.all(axis=-1)
        objectness_cost = jnp.where(
            partly, _absence(objectness, class_logits, labelled, focal_exponent), objectness_cost
        )
        class_cost = jnp.where(labelled | target.pseudo[..., None], class_cost, 0.0)
    cells = {
        "box": jnp.where(target.positive, 1 - boxes.complete_iou(predicted, own_box), 0.0),
        "objectness": jnp.where(target.ignored, 0.0, objectness_cost),
        "class": jnp.where(target.positive, class_cost.sum(axis=-1), 0.0),
    }
    count = jnp.maximum(target.positive.sum(), 1)
    terms = {name: weights[name] * cell.sum() / count for name, cell in cells.items()}
    return terms["box"] + terms["objectness"] + terms["class"], terms


def _absence(
    objectness: Float[Array, "batch cells"],
    class_logits: Float[Array, "batch cells classes"],
    labelled: Bool[Array, "batch 1 classes"],
    focal_exponent: float,
) -> Float[Array, "batch cells"]:
    """Focal cross-entropy of the score of any labelled class towards 0; 0 where none is labelled.

    The objectness alone may not be held down: the cell may show an object of another class.
    """
    log_none = -jax.nn.softplus(jnp.where(labelled, class_logits, UNLABELLED_LOGIT)).sum(axis=-1)
    log_any = jnp.log(-jnp.expm1(jnp.minimum(log_none, -LOG_FLOOR)))
    log_score = jnp.minimum(0.5 * (jax.nn.log_sigmoid(objectness) + log_any), -LOG_FLOOR)
    cost = -(jnp.exp(log_score) ** focal_exponent) * jnp.log(-jnp.expm1(log_score))
    return jnp.where(labelled.any(axis=-1), cost, 0.0)


class _Targets(NamedTuple):
    positive: Bool[Array, "batch cells"]  # the cell learns an object
    ignored: Bool[Array, "batch cells"]  # its objectness learns nothing
    box: Float[Array, "batch cells 4"]  # of the cell's object, px
    label: Int[Array, "batch cells"]
    pseudo: Bool[Array, "batch cells"]  # the object is another network's prediction


def _targets(
    outputs: Float[Array, "batch cells channels"],
    labels: Labels,
    image_size: ImageSize,
    strides: tuple[int, ...],
) -> _Targets:
    """Assigns the labelled boxes to cells."""
    finite = jnp.all(jnp.isfinite(labels["boxes_xyxy"]), axis=-1)
    missing = jnp.all(jnp.isnan(labels["boxes_xyxy"]), axis=(1, 2))
    truth = jnp.where(finite[..., None], labels["boxes_xyxy"], 0.0)  # before any sum: 0 * NaN would be NaN
    label = jnp.clip(labels["label"], 0, outputs.shape[-1] - BOX_CHANNELS - 2)
    valid, class_logits = labels["valid"] & finite, outputs[..., OBJECTNESS + 1 :]
    pseudo = labels.get("pseudo", jnp.zeros(label.shape, bool))
    if "labelled" in labels:
        labelled = jnp.asarray(labels["labelled"])
        valid &= jnp.take_along_axis(labelled, label, axis=1) | pseudo
        class_logits = jnp.where(labelled[:, None] | pseudo.any(), class_logits, UNLABELLED_LOGIT)
    owner = jax.vmap(functools.partial(assignment.sim_ota, image_size=image_size, strides=strides))(
        boxes.to_corners(outputs[..., :BOX_CHANNELS]),
        outputs[..., OBJECTNESS],
        class_logits,
        truth,
        label,
        valid,
    )
    positive = owner < truth.shape[1]
    owner = jnp.where(positive, owner, 0)
    ignored = jnp.broadcast_to(missing[:, None], positive.shape)
    if "crowd" in labels:
        ignored |= ~positive & _in_boxes(truth, labels["crowd"] & finite, image_size, strides)
    box = jnp.take_along_axis(truth, owner[..., None], axis=1)
    of_pseudo = positive & jnp.take_along_axis(pseudo, owner, axis=1)
    return _Targets(positive, ignored, box, jnp.take_along_axis(label, owner, axis=1), of_pseudo)


def _cross_entropy(logits: Float[Array, "*n"], target: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Binary cross-entropy towards a probability."""
    return jax.nn.softplus(logits) - target * logits


def _in_boxes(
    boxes_xyxy: Float[Array, "batch n 4"],
    is_object: Bool[Array, "batch n"],
    image_size: ImageSize,
    strides: tuple[int, ...],
) -> Bool[Array, "batch cells"]:
    """Says which cells have their centre within one of the chosen boxes."""
    centres = jnp.asarray(boxes.cell_grid(image_size, strides)[0])[None, None]
    low, high = boxes_xyxy[:, :, None, :2], boxes_xyxy[:, :, None, 2:]
    shape = (*boxes_xyxy.shape[:2], *centres.shape[2:])
    centres = jnp.broadcast_to(centres, shape)
    is_inside = jnp.all((centres >= low) & (centres <= high), axis=-1)
    return jnp.any(is_inside & is_object[..., None], axis=1)


def distillation_loss(
    raw: Float[Array, "batch cells channels"],
    teacher_raw: Float[Array, "batch cells channels"],
    image_size: ImageSize,
    *,
    strides: tuple[int, ...],
    balanced: bool = False,
) -> Float[Array, ""]:
    """How far the student's cells are from the teacher's, most of all where the teacher sees an object.

    The sum of KL(teacher || student) of the objectness on every cell, and, weighted by the teacher's
    objectness, that of each class, the smooth-L1 distance of the raw box and the generalised-IoU loss, over
    the teacher's total objectness. Balanced, the cells with an object are weighed by the rarity of its class, and
    the background, which is most of the cells, so that an error of its objectness costs no more than one of the
    objects'.

    References:
        Chen et al., "Learning Efficient Object Detection Models with Knowledge Distillation", 2017. Hinton,
        Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015. Guo et al., "Distilling Object
        Detectors via Decoupled Features", 2021 (objects and background apart).
    """
    student, teacher = (finish(array, image_size, strides) for array in (raw, teacher_raw))
    weight = jax.nn.sigmoid(teacher[..., OBJECTNESS])
    kl = _divergence(student[..., OBJECTNESS:], teacher[..., OBJECTNESS:])
    offset = jnp.abs(raw[..., :BOX_CHANNELS].astype(jnp.float32) - teacher_raw[..., :BOX_CHANNELS])
    smooth_l1 = jnp.where(offset < 1, 0.5 * offset**2, offset - 0.5)
    overlap = boxes.generalised_iou(
        boxes.to_corners(student[..., :BOX_CHANNELS]), boxes.to_corners(teacher[..., :BOX_CHANNELS])
    )
    of_object = kl[..., 1:].sum(axis=-1) + smooth_l1.sum(axis=-1) + 1 - overlap
    if balanced:
        rare = rarity(teacher[..., OBJECTNESS + 1 :].argmax(axis=-1), weight, teacher.shape[-1] - OBJECTNESS - 1)
        rare *= weight.sum() / jnp.maximum((rare * weight).sum(), 1.0)
        # What a small error of the logit costs is p (1 - p): of all objects together, and of all the background.
        information = weight * (1 - weight)
        of_objects, of_rest = (weight * information).sum(), ((1 - weight) * information).sum()
        background = (1 - weight) * jnp.minimum(of_objects / jnp.maximum(of_rest, 1e-6), 1.0)
        cost = weight * rare * (kl[..., 0] + of_object) + background * kl[..., 0]
    else:
        cost = kl[..., 0] + weight * of_object
    return cost.sum() / jnp.maximum(weight.sum(), 1.0)


def sampled_loss(
    raw: Float[Array, "batch cells channels"], image_size: ImageSize, key: Key[Array, ""], *, strides: tuple[int, ...]
) -> Float[Array, ""]:
    """-log-likelihood of objects drawn from the prediction, per expected object.

    A cell holds an object with the probability of its objectness. Where it does, each class is drawn by its own
    probability, and the raw box from a normal distribution of standard deviation 1 around it.
    """
    object_key, class_key, box_key = jax.random.split(key, 3)
    logits = finish(raw, image_size, strides)[..., OBJECTNESS:]
    probability = jax.nn.sigmoid(jax.lax.stop_gradient(logits))
    sampled_objectness = jax.random.bernoulli(object_key, probability[..., 0]).astype(jnp.float32)
    classes = jax.random.bernoulli(class_key, probability[..., 1:]).astype(jnp.float32)
    box = raw[..., :BOX_CHANNELS].astype(jnp.float32)
    sampled_box = jax.lax.stop_gradient(box) + jax.random.normal(box_key, box.shape)
    cost = _cross_entropy(logits[..., 0], sampled_objectness) + sampled_objectness * (
        _cross_entropy(logits[..., 1:], classes).sum(axis=-1) + 0.5 * jnp.square(sampled_box - box).sum(axis=-1)
    )
    return cost.sum() / jnp.maximum(probability[..., 0].sum(), 1.0)


def _divergence(student_logits: Float[Array, "*n"], teacher_logits: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """KL(teacher || student) of yes/no probabilities."""
    target = jax.nn.sigmoid(teacher_logits)
    return _cross_entropy(student_logits, target) - _cross_entropy(teacher_logits, target)
