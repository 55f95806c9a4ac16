"""Multi-label classification: which classes are true of an image, any number of them, each by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from mtl_jax.config.section import setting
from mtl_jax.errors import UserError
from mtl_jax.tasks import caption
from mtl_jax.tasks.base import (
    Constant,
    Geometry,
    ImageSize,
    Labels,
    LossAndParts,
    Prediction,
    Task,
    Thresholds,
    enough_classes,
    one_level,
    share_error,
)
from mtl_jax.tasks.distillation import of_both_sides

THRESHOLD = 0.5  # above it a class is said to be true


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiLabel(Task):
    """Which classes are true of an image."""

    kind = "multi_label"
    readout = "pooled"
    outputs = "the logit of each class"
    main_metric = "map"
    titles: ClassVar[Mapping[str, str]] = {"map": "mAP", "f1": "F1"}

    strides: tuple[int, ...] = setting((32,), "of the one level that the head reads", unit="px", least=1)
    positive_weight: float = setting(
        1.0,
        "of a class that is true, in the loss; above 1 where most classes are false of most images",
        above=0.0,
    )

    def check(self) -> None:
        """Checks that there is a class, and one level.

        Raises:
            UserError: there is not.
        """
        enough_classes(self.classes, 1, "list them all")
        one_level(self.kind, self.strides)

    @property
    def meanings(self) -> Mapping[str, str]:
        """Meaning of each prediction."""
        return {"probability": "of each class by itself"}

    def loss(self, raw: Float[Array, "batch classes"], labels: Labels, image_size: ImageSize) -> LossAndParts:
        """Binary cross-entropy, averaged over what is known of the batch: 1 is true, 0 is false, NaN is unknown."""
        del image_size
        is_labelled = jnp.isfinite(labels["label"])
        target = jnp.where(is_labelled, labels["label"], 0.0)
        costs = jnp.where(is_labelled, _cross_entropy(raw, target, self.positive_weight), 0.0)
        value = costs.sum() / jnp.maximum(is_labelled.sum(), 1)
        return value, {"cross_entropy": value}

    def sampled_loss(
        self, raw: Float[Array, "batch classes"], image_size: ImageSize, key: Key[Array, ""]
    ) -> Float[Array, ""]:
        """Binary cross-entropy towards labels drawn from the prediction, averaged over images and classes."""
        del image_size
        sampled = jax.random.bernoulli(key, jax.lax.stop_gradient(jax.nn.sigmoid(raw.astype(jnp.float32))))
        return _cross_entropy(raw, sampled.astype(jnp.float32)).mean()

    def distillation_loss(
        self,
        raw: Float[Array, "batch classes"],
        teacher_raw: Float[Array, "batch classes"],
        image_size: ImageSize,
        *,
        balanced: bool = False,
    ) -> Float[Array, ""]:
        """KL(teacher || student) of every class of every image, averaged; balanced, of a class's yes and no alike."""
        del image_size
        probability = jax.nn.sigmoid(teacher_raw.astype(jnp.float32))
        divergence = _cross_entropy(raw, probability) - _cross_entropy(teacher_raw, probability)
        return jnp.mean(0.5 * of_both_sides(divergence, probability, (0,)) if balanced else divergence)

    def no_labels(self, batch_size: int, image_size: ImageSize) -> Labels:
        """Returns NaN, unknown, for every class."""
        del image_size
        return {"label": jnp.full((batch_size, len(self.classes)), jnp.nan)}

    def lacks_classes(self, labels: Labels) -> bool:
        """True: any class may be unknown of any image."""
        del labels
        return True

    def fill_in(
        self, labels: Labels, teacher_raw: Float[Array, "batch classes"], image_size: ImageSize, threshold: float
    ) -> Labels:
        """Puts a sure yes or no of another network in the place of what is unknown."""
        del image_size
        probability = jax.nn.sigmoid(teacher_raw.astype(jnp.float32))
        sure = jnp.maximum(probability, 1 - probability) >= threshold
        pseudo_label = jnp.where(sure, jnp.round(probability), jnp.nan)
        return {**labels, "label": jnp.where(jnp.isnan(labels["label"]), pseudo_label, labels["label"])}

    def finish(self, raw: Float[Array, "batch classes"], image_size: ImageSize) -> Float[Array, "batch classes"]:
        """Returns the logits."""
        del image_size
        return raw.astype(jnp.float32)

    def decode(self, outputs: Float[Array, "batch classes"]) -> dict[str, Array]:
        """Returns the probability of each class."""
        return {"probability": jax.nn.sigmoid(outputs)}

    def new_metric(self) -> AveragePrecisions:
        """Returns the mean average precision, of nothing so far."""
        return AveragePrecisions(name=self.name, class_count=len(self.classes))

    def to_json(self, prediction: Prediction, threshold: Thresholds = None) -> dict[str, Any]:
        """Returns "tags", the classes said to be true, and "probability", every class; with probabilities, falling."""
        ranked = caption.ranked(self.classes, prediction["probability"], self.output_classes)
        levels = np.broadcast_to(THRESHOLD if threshold is None else threshold, len(self.classes))
        least = dict(zip(self.classes, levels.tolist(), strict=True))
        return {"tags": {name: value for name, value in ranked.items() if value > least[name]}, "probability": ranked}

    def draw(self, axes: Any, prediction: Prediction, threshold: Thresholds = None) -> None:
        """Writes the classes that are said to be true into the image's corner, the most probable first."""
        tags = self.to_json(prediction, threshold)["tags"]
        lines = [f"{name} {probability:.0%}" for name, probability in tags.items()]
        least = THRESHOLD if threshold is None else float(np.min(threshold))
        caption.write(axes, "\n".join(lines) or f"no class above {least:.0%}")


def _cross_entropy(
    raw: Float[Array, "batch classes"], target: Float[Array, "batch classes"], positive_weight: float = 1.0
) -> Float[Array, "batch classes"]:
    raw = raw.astype(jnp.float32)
    return positive_weight * target * jax.nn.softplus(-raw) + (1 - target) * jax.nn.softplus(raw)


class AveragePrecisions:
    """Mean over classes of their average precision ("map"), and the F1 score of all outputs together ("f1").

    What is unknown of an image counts nowhere. Classes that are true of no image are left out of the mean; without
    any other class it is NaN, and so is the F1 score where nothing is true and nothing was said to be.
    """

    def __init__(self, *, name: str, class_count: int) -> None:
        self._name, self._class_count = name, class_count
        self._probabilities: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []

    def update(self, prediction: Prediction, target: Labels, geometry: Geometry) -> None:
        """Adds one image.

        Raises:
            UserError: there are more or fewer labels than classes.
        """
        del geometry
        label = np.asarray(target["label"])
        if label.shape != (self._class_count,):
            raise UserError(
                f"task {self._name!r}: expected a label for each of {self._class_count} classes, found {label.shape}; "
                "list every class in the config"
            )
        self._labels.append(label)
        self._probabilities.append(np.asarray(prediction["probability"]))

    def compute(self) -> dict[str, float]:
        """Returns "map" and "f1"."""
        labels, probabilities = (
            np.array(rows).reshape(-1, self._class_count) for rows in (self._labels, self._probabilities)
        )
        is_labelled = np.isfinite(labels)
        precisions = [
            average_precision(probabilities[rows, column], labels[rows, column] == 1)
            for column, rows in enumerate(is_labelled.T)
            if (labels[:, column] == 1).any()
        ]
        is_predicted = probabilities > THRESHOLD
        hits, mistakes = (is_predicted & (labels == 1)).sum(), (is_predicted & (labels == 0)).sum()
        f1_denominator = hits + mistakes + (labels == 1).sum()
        return {
            "map": float(np.mean(precisions)) if precisions else float("nan"),
            "f1": float(2 * hits / f1_denominator) if f1_denominator else float("nan"),
        }

    def constant(self) -> Constant:
        """Returns what equal probabilities for every image reach: the share of images that each class is true of."""
        labels = np.array(self._labels).reshape(-1, self._class_count)
        shares = [np.mean(column[np.isfinite(column)] == 1) for column in labels.T if (column == 1).any()]
        figure = float(np.mean(shares)) if shares else float("nan")
        count = int((labels == 1).any(axis=1).sum())
        return Constant(figure, share_error(figure, count), count, "image that a class is true of")


def average_precision(score: Float[np.ndarray, "images"], positive: Bool[np.ndarray, "images"]) -> float:
    """The mean precision over the positives, each at the threshold that just reaches it; no interpolation.

    Args:
        score: of each image; equal scores are reached together.
        positive: which images are to be found; at least one.
    """
    order = np.argsort(-score, kind="stable")
    thresholds = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    hits = np.cumsum(positive[order])[thresholds]
    return float(np.sum(np.diff(hits, prepend=0) * hits / (thresholds + 1)) / hits[-1])
