"""Object detection without anchors: each cell of the head's grid predicts a box, its objectness and class."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mtl_jax.config.section import setting
from mtl_jax.errors import UserError
from mtl_jax.tasks import box_drawing, boxes, detection_cells, detection_loss
from mtl_jax.tasks.base import (
    Geometry,
    ImageSize,
    Labels,
    LossAndParts,
    Prediction,
    Task,
    Thresholds,
    Undecided,
    enough_classes,
)
from mtl_jax.tasks.detection_cells import BOX_CHANNELS, Cells, Selection
from mtl_jax.tasks.mean_average_precision import MeanAveragePrecision, to_original

PSEUDO_BOXES = 32  # of an image, that another network may fill in
MIN_SCORE = 0.3  # of an output; the tail below is there for mean average precision
MEANINGS = {
    "boxes_xyxy": "left, top, right, bottom of each detection, px of the input, best first; 0 if not valid",
    "score": "of each detection, 0 to 1",
    "label": "the class index of each detection",
    "valid": "whether there is a detection at all",
}
CELL_MEANINGS = {
    "boxes_xyxy": "left, top, right, bottom of the box of each cell, px of the input",
    "score": "of each cell's box as each class, 0 to 1; boxes of one class that overlap are not suppressed",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection(Task):
    """Boxes of objects; there is no background class."""

    kind = "detection"
    readout = "cells"
    outputs = "of each cell: centre x, y, width, height in px of the input, logits of objectness and of each class"
    main_metric = "map_50_95"
    titles: ClassVar[Mapping[str, str]] = {
        "map_50_95": "mAP 50-95",
        "map_50": "mAP 50",
        "map_75": "mAP 75",
        "map_small": "mAP small",
        "map_medium": "mAP medium",
        "map_large": "mAP large",
    }

    strides: tuple[int, ...] = setting((8, 16, 32), "of each level that the head reads", unit="px", least=1)
    box_weight: float = setting(5.0, "of the boxes' loss (5 in YOLOX)", least=0.0)
    objectness_weight: float = setting(1.0, "of the objectness loss", least=0.0)
    class_weight: float = setting(1.0, "of the classes' loss", least=0.0)
    focal_exponent: float = setting(
        2.0, "of |IoU - objectness|, which scales the objectness loss (2 in Li et al. 2020)", least=0.0
    )
    score_threshold: float = setting(
        0.005,
        "detections below are dropped; low, because mean average precision wants the tail",
        least=0.0,
        below=1.0,
    )
    nms_iou: float = setting(0.5, "overlap above which the worse of two boxes of a class goes", above=0.0, most=1.0)
    voting_iou: float = setting(
        0.6, "overlap above which a box of the same class moves the one that stays; 1 is off", above=0.0, most=1.0
    )
    candidates: int = setting(
        512, "pairs of cell and class that non-maximum suppression looks at, the best by score", least=1
    )
    max_detections: int = setting(100, "per image (100 in COCO)", least=1)

    def check(self) -> None:
        """Checks that there are classes, levels, and as many candidates as detections.

        Raises:
            UserError: there are not.
        """
        enough_classes(self.classes, 1, "list the classes")
        if not self.strides:
            raise UserError("strides: expected at least one stride, found none; name levels of the neck")
        if self.max_detections > self.candidates:
            raise UserError(
                f"max_detections: expected at most candidates, {self.candidates}, found {self.max_detections}; change "
                "one of them"
            )

    @property
    def channels(self) -> int:
        """Box, objectness and classes of each cell."""
        return BOX_CHANNELS + 1 + len(self.classes)

    @property
    def meanings(self) -> Mapping[str, str]:
        """Meaning of each prediction."""
        return MEANINGS

    def loss(self, raw: Cells, labels: Labels, image_size: ImageSize) -> LossAndParts:
        """Returns the loss of boxes, objectness and classes (`detection_loss.loss`)."""
        weights = {"box": self.box_weight, "objectness": self.objectness_weight, "class": self.class_weight}
        return detection_loss.loss(
            raw, labels, image_size, strides=self.strides, weights=weights, focal_exponent=self.focal_exponent
        )

    def sampled_loss(self, raw: Cells, image_size: ImageSize, key: Key[Array, ""]) -> Float[Array, ""]:
        """Returns the -log-likelihood of objects drawn from the prediction, per expected object."""
        return detection_loss.sampled_loss(raw, image_size, key, strides=self.strides)

    def distillation_loss(
        self, raw: Cells, teacher_raw: Cells, image_size: ImageSize, *, balanced: bool = False
    ) -> Float[Array, ""]:
        """Returns how far the student's cells are from the teacher's, most of all where the teacher sees an object."""
        return detection_loss.distillation_loss(raw, teacher_raw, image_size, strides=self.strides, balanced=balanced)

    def no_labels(self, batch_size: int, image_size: ImageSize) -> Labels:
        """Returns boxes of NaN: nobody looked for objects."""
        del image_size
        rows = (batch_size, 1)
        boxes_xyxy = jnp.full((*rows, 4), jnp.nan)
        return {"boxes_xyxy": boxes_xyxy, "label": jnp.zeros(rows, jnp.int32), "valid": jnp.zeros(rows, bool)}

    def fill_in(self, labels: Labels, teacher_raw: Cells, image_size: ImageSize, threshold: float) -> Labels:
        """Adds the boxes of unlabelled classes that another network is sure of, unless a labelled box lies there.

        They are marked by "pseudo" bool[batch, boxes].
        """
        if "labelled" not in labels:
            return labels
        labels = {name: jnp.asarray(value) for name, value in labels.items()}
        sure = Selection(threshold, self.nms_iou, 1.0, 4 * PSEUDO_BOXES, PSEUDO_BOXES)
        detections = detection_cells.decode(self.finish(teacher_raw, image_size), sure)
        truth = labels["boxes_xyxy"]
        has_box = labels["valid"] & jnp.isfinite(truth).all(axis=-1)
        shape = (*truth.shape[:2], PSEUDO_BOXES, 4)
        overlap = boxes.iou(
            jnp.broadcast_to(jnp.where(has_box[..., None], truth, 0.0)[:, :, None], shape),
            jnp.broadcast_to(detections["boxes_xyxy"][:, None], shape),
        )
        is_free = jnp.where(has_box[..., None], overlap, 0.0).max(axis=1) < self.nms_iou
        is_unlabelled = ~jnp.take_along_axis(labels["labelled"], detections["label"], axis=1)
        was_looked_at = ~jnp.isnan(truth).all(axis=(1, 2))[:, None]
        is_pseudo = detections["valid"] & is_unlabelled & is_free & was_looked_at
        fields = {
            "boxes_xyxy": jnp.where(is_pseudo[..., None], detections["boxes_xyxy"], jnp.nan),
            "label": detections["label"],
            "valid": is_pseudo,
            "crowd": jnp.zeros_like(is_pseudo),
        }
        merged = {name: jnp.concatenate([labels[name], fields[name]], axis=1) for name in fields if name in labels}
        return {**labels, **merged, "pseudo": jnp.concatenate([jnp.zeros_like(labels["valid"]), is_pseudo], axis=1)}

    def finish(self, raw: Cells, image_size: ImageSize) -> Cells:
        """Returns per cell cx, cy, w, h in px, the objectness logit and the class logits."""
        return detection_cells.finish(raw, image_size, self.strides)

    def decode(self, outputs: Cells) -> dict[str, Array]:
        """Returns the best boxes, best first (`detection_cells.decode`)."""
        return detection_cells.decode(outputs, self._selection)

    def predictions(self, raw: Cells, image_size: ImageSize) -> dict[str, Array]:
        """Returns the best boxes, best first, of which alone boxes are computed (`detection_cells.predictions`)."""
        counts = self._class_counts
        return detection_cells.predictions(raw, self._selection, counts, image_size=image_size, strides=self.strides)

    @property
    def _class_counts(self) -> tuple[int, ...]:
        """Classes of each detector of which it consists."""
        return (len(self.classes),)

    @property
    def _selection(self) -> Selection:
        return Selection(self.score_threshold, self.nms_iou, self.voting_iou, self.candidates, self.max_detections)

    @property
    def undecided(self) -> Undecided:
        """The box of every cell, of which `decode` chooses."""
        return Undecided(detection_cells.every_box, CELL_MEANINGS)

    def at_original(self, prediction: Prediction, geometry: Geometry) -> Prediction:
        """Moves one image's boxes to its own pixels, cut at its border."""
        return {**prediction, "boxes_xyxy": to_original(np.asarray(prediction["boxes_xyxy"], np.float64), geometry)}

    def new_metric(self) -> MeanAveragePrecision:
        """Returns the mean average precision, of nothing so far."""
        return MeanAveragePrecision(name=self.name, classes=self.classes)

    def to_json(self, prediction: Prediction, threshold: Thresholds = None) -> dict[str, Any]:
        """Returns "boxes_xyxy" in px, "label" (names) and "score" of the detections of a fair score, best first."""
        detections = fair(prediction, threshold)
        return {
            "boxes_xyxy": np.asarray(prediction["boxes_xyxy"], np.float64)[detections].round(2).tolist(),
            "label": [self.classes[label] for label in np.asarray(prediction["label"])[detections]],
            "score": np.asarray(prediction["score"], np.float64)[detections].round(6).tolist(),
        }

    def draw(self, axes: Any, prediction: Prediction, threshold: Thresholds = None) -> None:
        """Frames every detection of a fair score, with its class and score."""
        boxes = np.asarray(prediction["boxes_xyxy"], np.float64)
        framed = []
        for index in fair(prediction, threshold):
            label, score = int(prediction["label"][index]), float(prediction["score"][index])
            text = self.classes[label] + ("" if score == 1 else f" {score:.2f}")  # labels, drawn alike, have no score
            framed.append(box_drawing.Framed(tuple(boxes[index].tolist()), text, f"C{label % 10}"))
        box_drawing.draw(axes, framed)


def fair(prediction: Prediction, threshold: Thresholds) -> Int[np.ndarray, "found"]:
    """Returns the indices of the detections that are shown.

    Args:
        prediction: of one image.
        threshold: least score; None for `MIN_SCORE`.
    """
    least = np.asarray(MIN_SCORE if threshold is None else threshold)
    if least.ndim:
        least = least[np.asarray(prediction["label"])]
    return np.flatnonzero(np.asarray(prediction["valid"]) & (np.asarray(prediction["score"]) >= least))
