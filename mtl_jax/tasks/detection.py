"""Object detection without anchors: each cell of the head's grid predicts a box, its objectness and class."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from mtl_jax.errors import UserError
from mtl_jax.tasks import assignment, boxes
from mtl_jax.tasks.base import Candidates, Geometry, ImageSize, Labels, Task
from mtl_jax.tasks.distillation import rarity
from mtl_jax.tasks.mean_average_precision import MeanAveragePrecision, to_original

OBJECTNESS_PRIOR = 0.01  # of an untrained head, whose biases are zero (Lin et al., "Focal Loss", 2017)
PRIOR_LOGIT = float(np.log(OBJECTNESS_PRIOR / (1 - OBJECTNESS_PRIOR)))
BOX_CHANNELS, OBJECTNESS = 4, 4  # a cell's channels: 4 of the box, objectness, classes
LABEL_ROOM = 0.05  # of the picture's height, above a box that its label stands on
TITLES = {
    "map_50_95": "mAP 50-95",
    "map_50": "mAP 50",
    "map_75": "mAP 75",
    "map_small": "mAP small",
    "map_medium": "mAP medium",
    "map_large": "mAP large",
}
UNLABELLED_LOGIT = -1e4  # of a class that nobody looked for: as good as impossible, and finite
LOG_FLOOR = 1e-6
PSEUDO_BOXES = 32  # of an image, that another network may fill in
MIN_SCORE = 0.3  # of an answer; the tail below is there for mean average precision


def make(
    name: str,
    classes: Sequence[str],
    *,
    strides: Sequence[int] = (8, 16, 32),
    box_weight: float = 5.0,
    objectness_weight: float = 1.0,
    class_weight: float = 1.0,
    focal_exponent: float = 2.0,
    score_threshold: float = 0.005,
    nms_iou: float = 0.5,
    voting_iou: float = 0.6,
    candidates: int = 512,
    max_detections: int = 100,
) -> Task:
    """Builds a detection task.

    Args:
        name: of the task.
        classes: names, in the order of the labels; there is no background class.
        strides: px per cell of each level that the head reads.
        box_weight: of the boxes' loss (5 in YOLOX).
        objectness_weight: of the objectness loss.
        class_weight: of the classes' loss.
        focal_exponent: of |IoU - objectness|, which scales the objectness loss (2 in Li et al. 2020).
        score_threshold: detections below are dropped; low, because mean average precision wants the tail.
        nms_iou: overlap above which the worse of two boxes of a class goes.
        voting_iou: overlap above which a box of the same class moves the one that stays; 1 is off.
        candidates: pairs of cell and class that non-maximum suppression looks at, the best by score.
        max_detections: per image (100 in COCO).

    Raises:
        UserError: a setting is outside its range.
    """
    classes, strides = tuple(classes), tuple(strides)
    where = f"task {name!r}: expected "
    if not classes:
        raise UserError(where + "at least one class, found none; list the classes")
    if not strides or min(strides) < 1:
        raise UserError(where + f"strides >= 1 px, found {strides}; name levels of the neck")
    shares = (score_threshold, nms_iou, voting_iou)
    if not 0 <= score_threshold < 1 or not 0 < nms_iou <= 1 or not 0 < voting_iou <= 1:
        raise UserError(where + f"score_threshold, nms_iou and voting_iou within 0..1, found {shares}; change them")
    if not 1 <= max_detections <= candidates:
        raise UserError(where + f"1 <= max_detections <= candidates, found {max_detections} and {candidates}")
    return Task(
        name=name,
        kind="detection",
        classes=classes,
        channels=BOX_CHANNELS + 1 + len(classes),
        readout="cells",
        strides=strides,
        main_metric="map_50_95",
        higher_is_better=True,
        loss=functools.partial(
            loss,
            strides=strides,
            weights={"box": box_weight, "objectness": objectness_weight, "class": class_weight},
            focal_exponent=focal_exponent,
        ),
        distillation_loss=functools.partial(distillation_loss, strides=strides),
        balanced_distillation_loss=functools.partial(distillation_loss, strides=strides, balanced=True),
        sampled_loss=functools.partial(sampled_loss, strides=strides),
        fill_in=functools.partial(fill_in, strides=strides, nms_iou=nms_iou),
        finish=functools.partial(finish, strides=strides),
        decode=functools.partial(
            decode,
            score_threshold=score_threshold,
            nms_iou=nms_iou,
            voting_iou=voting_iou,
            candidates=candidates,
            max_detections=max_detections,
        ),
        candidates=Candidates(
            every_box,
            {
                "boxes_xyxy": "left, top, right, bottom of the box of each cell, px of the input",
                "score": "of each cell's box as each class, 0 to 1; boxes of one class that overlap are not suppressed",
            },
        ),
        meanings={
            "boxes_xyxy": "left, top, right, bottom of each detection, px of the input, best first; 0 if not valid",
            "score": f"of each detection, 0 to 1; below about {MIN_SCORE} it says little",
            "label": "the class index of each detection",
            "valid": "whether there is a detection at all",
        },
        no_labels=no_labels,
        new_metric=functools.partial(MeanAveragePrecision, name=name, classes=classes),
        answer=functools.partial(answer, classes=classes),
        draw=functools.partial(draw, classes=classes),
        at_original=at_original,
    )


def finish(
    raw: Float[Array, "batch cells channels"], image_size: ImageSize, *, strides: tuple[int, ...]
) -> Float[Array, "batch cells channels"]:
    """Returns per cell cx, cy, w, h in px, the objectness logit and the class logits.

    Args:
        raw: as `boxes.decode` reads the box; the objectness is relative to its prior.
        image_size: height and width of the network's input, px.
        strides: px per cell of each level.

    Raises:
        ValueError: `raw` has another number of cells than the levels of such an image.
    """
    centres, cell_strides = boxes.cell_grid(image_size, strides)
    if raw.shape[1] != len(centres):
        raise ValueError(
            f"expected {len(centres)} cells for an image of {image_size} px at strides {strides}, found "
            f"{raw.shape[1]}; pass the image size that the head saw"
        )
    raw = raw.astype(jnp.float32)
    box = boxes.decode(raw[..., :BOX_CHANNELS], centres, cell_strides)
    return jnp.concatenate([box, raw[..., OBJECTNESS, None] + PRIOR_LOGIT, raw[..., OBJECTNESS + 1 :]], axis=-1)


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
    outputs = finish(raw, image_size, strides=strides)
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
    parts = {name: weights[name] * cell.sum() / count for name, cell in cells.items()}
    return parts["box"] + parts["objectness"] + parts["class"], parts


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


def no_labels(batch_size: int, image_size: ImageSize) -> Labels:
    """Returns boxes of NaN: nobody looked for objects."""
    del image_size
    rows = (batch_size, 1)
    boxes_xyxy = jnp.full((*rows, 4), jnp.nan)
    return {"boxes_xyxy": boxes_xyxy, "label": jnp.zeros(rows, jnp.int32), "valid": jnp.zeros(rows, bool)}


def fill_in(
    labels: Labels,
    teacher_raw: Float[Array, "batch cells channels"],
    image_size: ImageSize,
    threshold: float,
    *,
    strides: tuple[int, ...],
    nms_iou: float,
) -> Labels:
    """Adds the boxes of unlabelled classes that another network is sure of, unless a labelled box lies there.

    They are marked by "pseudo" bool[batch, boxes].
    """
    if "labelled" not in labels:
        return labels
    labels = {name: jnp.asarray(value) for name, value in labels.items()}
    found = decode(
        finish(teacher_raw, image_size, strides=strides),
        score_threshold=threshold,
        nms_iou=nms_iou,
        voting_iou=1.0,
        candidates=4 * PSEUDO_BOXES,
        max_detections=PSEUDO_BOXES,
    )
    truth = labels["boxes_xyxy"]
    known = labels["valid"] & jnp.isfinite(truth).all(axis=-1)
    shape = (*truth.shape[:2], PSEUDO_BOXES, 4)
    overlap = boxes.iou(
        jnp.broadcast_to(jnp.where(known[..., None], truth, 0.0)[:, :, None], shape),
        jnp.broadcast_to(found["boxes_xyxy"][:, None], shape),
    )
    added = found["valid"] & ~jnp.take_along_axis(labels["labelled"], found["label"], axis=1)
    added &= (jnp.where(known[..., None], overlap, 0.0).max(axis=1) < nms_iou) & ~jnp.isnan(truth).all(axis=(1, 2))[
        :, None
    ]
    fields = {
        "boxes_xyxy": jnp.where(added[..., None], found["boxes_xyxy"], jnp.nan),
        "label": found["label"],
        "valid": added,
        "crowd": jnp.zeros_like(added),
    }
    joined = {name: jnp.concatenate([labels[name], fields[name]], axis=1) for name in fields if name in labels}
    return {**labels, **joined, "pseudo": jnp.concatenate([jnp.zeros_like(labels["valid"]), added], axis=1)}


class _Targets(NamedTuple):
    positive: Bool[Array, "batch cells"]  # the cell learns an object
    ignored: Bool[Array, "batch cells"]  # its objectness learns nothing
    box: Float[Array, "batch cells 4"]  # of the cell's object, px
    label: Int[Array, "batch cells"]
    pseudo: Bool[Array, "batch cells"]  # the object is another network's answer


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
    chosen: Bool[Array, "batch n"],
    image_size: ImageSize,
    strides: tuple[int, ...],
) -> Bool[Array, "batch cells"]:
    """Says which cells have their centre within one of the chosen boxes."""
    centres = jnp.asarray(boxes.cell_grid(image_size, strides)[0])[None, None]
    low, high = boxes_xyxy[:, :, None, :2], boxes_xyxy[:, :, None, 2:]
    shape = (*boxes_xyxy.shape[:2], *centres.shape[2:])
    centres = jnp.broadcast_to(centres, shape)
    inside = jnp.all((centres >= low) & (centres <= high), axis=-1)
    return jnp.any(inside & chosen[..., None], axis=1)


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
    student, teacher = (finish(array, image_size, strides=strides) for array in (raw, teacher_raw))
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
        rest = (1 - weight) * jnp.minimum(of_objects / jnp.maximum(of_rest, 1e-6), 1.0)
        cost = weight * rare * (kl[..., 0] + of_object) + rest * kl[..., 0]
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
    logits = finish(raw, image_size, strides=strides)[..., OBJECTNESS:]
    probability = jax.nn.sigmoid(jax.lax.stop_gradient(logits))
    found = jax.random.bernoulli(object_key, probability[..., 0]).astype(jnp.float32)
    classes = jax.random.bernoulli(class_key, probability[..., 1:]).astype(jnp.float32)
    box = raw[..., :BOX_CHANNELS].astype(jnp.float32)
    drawn = jax.lax.stop_gradient(box) + jax.random.normal(box_key, box.shape)
    cost = _cross_entropy(logits[..., 0], found) + found * (
        _cross_entropy(logits[..., 1:], classes).sum(axis=-1) + 0.5 * jnp.square(drawn - box).sum(axis=-1)
    )
    return cost.sum() / jnp.maximum(probability[..., 0].sum(), 1.0)


def _divergence(student_logits: Float[Array, "*n"], teacher_logits: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """KL(teacher || student) of yes/no probabilities."""
    target = jax.nn.sigmoid(teacher_logits)
    return _cross_entropy(student_logits, target) - _cross_entropy(teacher_logits, target)


def decode(
    outputs: Float[Array, "batch cells channels"],
    *,
    score_threshold: float,
    nms_iou: float,
    voting_iou: float,
    candidates: int,
    max_detections: int,
) -> dict[str, Array]:
    """Returns the best boxes after non-maximum suppression within each class, best first.

    The score is the geometric mean of objectness and class probability: both learn the IoU, so their mean
    estimates it, while their product, which ranks alike, would be its square. A cell may answer with several
    classes.

    Args:
        outputs: of `finish`.
        score_threshold: boxes with a lower score are not valid.
        nms_iou: overlap above which the worse of two boxes of a class goes.
        voting_iou: overlap above which a box of the same class moves the one that stays (`boxes.vote`).
        candidates: pairs of cell and class that are looked at.
        max_detections: number k of boxes returned.

    Returns:
        "boxes_xyxy" f32[batch, k, 4] in px of the input, "score" f32[batch, k], "label" i32[batch, k] and
        "valid" bool[batch, k]; the entries that are not valid are 0.
    """
    select = functools.partial(
        _decode_one,
        score_threshold=score_threshold,
        nms_iou=nms_iou,
        voting_iou=voting_iou,
        candidates=candidates,
        max_detections=max_detections,
    )
    return jax.vmap(select)(outputs)


def every_box(outputs: Float[Array, "batch cells channels"]) -> dict[str, Array]:
    """Returns the box of every cell and its score as each class, of which `decode` chooses.

    Args:
        outputs: of `finish`.

    Returns:
        "boxes_xyxy" f32[batch, cells, 4] in px of the input and "score" f32[batch, cells, classes].
    """
    return {"boxes_xyxy": boxes.to_corners(outputs[..., :BOX_CHANNELS]), "score": _scores(outputs)}


def _scores(outputs: Float[Array, "*cells channels"]) -> Float[Array, "*cells classes"]:
    log_probability = jax.nn.log_sigmoid(outputs[..., OBJECTNESS:])
    return jnp.exp(0.5 * (log_probability[..., :1] + log_probability[..., 1:]))


def _decode_one(
    outputs: Float[Array, "cells channels"],
    *,
    score_threshold: float,
    nms_iou: float,
    voting_iou: float,
    candidates: int,
    max_detections: int,
) -> dict[str, Array]:
    score = _scores(outputs)
    class_count = score.shape[1]
    score, index = jax.lax.top_k(score.reshape(-1), min(candidates, score.size))
    label = index % class_count
    box = boxes.to_corners(outputs[:, :BOX_CHANNELS][index // class_count])
    valid = score >= score_threshold
    keep = boxes.suppress(box, label, valid, iou_threshold=nms_iou)
    rank = jnp.where(keep, jnp.cumsum(keep) - 1, max_detections)  # those past the end are dropped

    def place(values: Array) -> Array:
        return jnp.zeros((max_detections, *values.shape[1:]), values.dtype).at[rank].set(values, mode="drop")

    found = {"boxes_xyxy": place(box), "score": place(score), "label": place(label), "valid": place(keep)}
    moved = found["boxes_xyxy"], found["label"]
    return found | {"boxes_xyxy": boxes.vote(box, score, label, valid, iou_threshold=voting_iou, moved=moved)}


def at_original(prediction: Mapping[str, np.ndarray], geometry: Geometry) -> dict[str, np.ndarray]:
    """Moves one image's boxes to its own pixels, cut at its border."""
    return {**prediction, "boxes_xyxy": to_original(np.asarray(prediction["boxes_xyxy"], np.float64), geometry)}


def answer(
    prediction: Mapping[str, np.ndarray], threshold: float | None = None, *, classes: tuple[str, ...]
) -> dict[str, Any]:
    """Returns "boxes_xyxy" in px, "label" (names) and "score" of the detections of a fair score, best first."""
    found = _fair(prediction, threshold)
    return {
        "boxes_xyxy": np.asarray(prediction["boxes_xyxy"], np.float64)[found].round(2).tolist(),
        "label": [classes[label] for label in np.asarray(prediction["label"])[found]],
        "score": np.asarray(prediction["score"], np.float64)[found].round(6).tolist(),
    }


def _fair(prediction: Mapping[str, np.ndarray], threshold: float | None) -> np.ndarray:
    least = MIN_SCORE if threshold is None else threshold
    return np.flatnonzero(np.asarray(prediction["valid"]) & (np.asarray(prediction["score"]) >= least))


def draw(
    axes: Any, prediction: Mapping[str, np.ndarray], threshold: float | None = None, *, classes: tuple[str, ...]
) -> None:
    """Frames every detection of a fair score, with its class and score."""
    from matplotlib.patches import Rectangle  # slow to import

    top, bottom = sorted(axes.get_ylim())
    for index in reversed(_fair(prediction, threshold)):  # the best lies on top
        x0, y0, x1, y1 = np.asarray(prediction["boxes_xyxy"])[index]
        label, score = int(prediction["label"][index]), float(prediction["score"][index])
        colour = f"C{label % 10}"
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.5))
        box = {"facecolor": colour, "edgecolor": "none", "pad": 1.5}
        style = {"fontsize": "x-small", "color": "white", "bbox": box, "clip_on": True}
        # A label that would leave the picture goes into its box.
        side = "bottom" if y0 - top > LABEL_ROOM * (bottom - top) else "top"
        axes.text(x0, y0, f"{classes[label]} {score:.2f}", verticalalignment=side, **style)
