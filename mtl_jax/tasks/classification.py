"""Classification: one class per image, from the mean of the head's features on one level of the neck."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

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
    enough_classes,
    one_level,
    share_error,
)
from mtl_jax.tasks.distillation import by_class, softened_divergence

CAPTION_CLASSES = 3
UNLABELLED_LOGIT = -1e9  # of a class that nobody looked for: its probability is 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """One class per image."""

    kind = "classification"
    readout = "pooled"
    outputs = "the logit of each class"
    main_metric = "top1"
    titles: ClassVar[Mapping[str, str]] = {"top1": "Top-1", "top5": "Top-5"}

    strides: tuple[int, ...] = setting((32,), "of the one level that the head reads", unit="px", least=1)
    label_smoothing: float = setting(0.0, "share of the target that is spread over all classes", least=0.0, below=1.0)
    distillation_temperature: float = setting(2.0, "divides the logits of teacher and student", above=0.0)

    def check(self) -> None:
        """Checks that there is a choice, and one level.

        Raises:
            UserError: there is not.
        """
        enough_classes(self.classes, 2, "list them all")
        one_level(self.kind, self.strides)

    @property
    def meanings(self) -> Mapping[str, str]:
        """Meaning of each prediction."""
        return {"probability": "of each class; they sum to 1"}

    def loss(self, raw: Float[Array, "batch classes"], labels: Labels, image_size: ImageSize) -> LossAndParts:
        """Cross-entropy, averaged over the labelled images of the batch; a label outside the table is missing.

        Where only some classes are labelled, the softmax is over these alone, and a label of another is missing.

        References:
            Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (label smoothing), 2016.
        """
        del image_size
        label, logits = labels["label"], raw.astype(jnp.float32)
        labelled = (label >= 0) & (label < raw.shape[-1])
        target = jnp.where(labelled, label, 0)[:, None]
        labelled_classes = jnp.asarray(labels.get("labelled", jnp.ones(raw.shape, bool)))  # bool[batch, classes]
        labelled &= jnp.take_along_axis(labelled_classes, target, axis=-1)[:, 0]
        log_p = jax.nn.log_softmax(jnp.where(labelled_classes, logits, UNLABELLED_LOGIT))
        own_class = jnp.take_along_axis(log_p, target, axis=-1)[:, 0]
        every_class = jnp.where(labelled_classes, log_p, 0.0).sum(axis=-1) / jnp.maximum(
            labelled_classes.sum(axis=-1), 1
        )
        cost = -(1 - self.label_smoothing) * own_class - self.label_smoothing * every_class
        value = jnp.where(labelled, cost, 0.0).sum() / jnp.maximum(labelled.sum(), 1)
        return value, {"cross_entropy": value}

    def sampled_loss(
        self, raw: Float[Array, "batch classes"], image_size: ImageSize, key: Key[Array, ""]
    ) -> Float[Array, ""]:
        """Cross-entropy towards classes drawn from the prediction, averaged over the images."""
        del image_size
        log_p = log_probabilities(raw)
        sampled = jax.random.categorical(key, jax.lax.stop_gradient(log_p))
        return -jnp.take_along_axis(log_p, sampled[:, None], axis=-1).mean()

    def distillation_loss(
        self,
        raw: Float[Array, "batch classes"],
        teacher_raw: Float[Array, "batch classes"],
        image_size: ImageSize,
        *,
        balanced: bool = False,
    ) -> Float[Array, ""]:
        """KL(teacher || student), both softened; balanced, every class that the teacher sees counts alike."""
        del image_size
        weigh = by_class if balanced else None
        return softened_divergence(raw, teacher_raw, temperature=self.distillation_temperature, weigh=weigh)

    def no_labels(self, batch_size: int, image_size: ImageSize) -> Labels:
        """Returns labels outside the table."""
        del image_size
        return {"label": jnp.full(batch_size, -1)}

    def fill_in(
        self, labels: Labels, teacher_raw: Float[Array, "batch classes"], image_size: ImageSize, threshold: float
    ) -> Labels:
        """Gives images without a label the class that another network is sure of, if nobody looked for it there."""
        del image_size
        if "labelled" not in labels:
            return labels
        label, labelled_classes = jnp.asarray(labels["label"]), jnp.asarray(labels["labelled"])
        probability = jax.nn.softmax(teacher_raw.astype(jnp.float32))
        best = probability.argmax(axis=-1)
        unlabelled = ~jnp.take_along_axis(labelled_classes, best[:, None], axis=-1)[:, 0]
        is_pseudo = (label < 0) & unlabelled & (probability.max(axis=-1) >= threshold)
        return {**labels, "label": jnp.where(is_pseudo, best, label), "labelled": labelled_classes | is_pseudo[:, None]}

    @property
    def log_probabilities(self) -> Callable[[Array], Float[Array, "batch outcomes"]]:
        """(raw) -> the log-probability of each class."""
        return log_probabilities

    def finish(self, raw: Float[Array, "batch classes"], image_size: ImageSize) -> Float[Array, "batch classes"]:
        """Returns the logits."""
        del image_size
        return raw.astype(jnp.float32)

    def decode(self, outputs: Float[Array, "batch classes"]) -> dict[str, Array]:
        """Returns the probability of each class."""
        softmax = jax.jit(jax.nn.softmax)  # under a name by which exported files know it: they have an operator for it
        return {"probability": softmax(outputs)}

    def new_metric(self) -> TopAccuracy:
        """Returns the shares of images whose class is ranked first, or among the first five."""
        return TopAccuracy(name=self.name, class_count=len(self.classes))

    def to_json(self, prediction: Prediction, threshold: float | None = None) -> dict[str, Any]:
        """Returns "label", the most probable class, and {"probability": {class: its own}}, the most probable first."""
        del threshold
        ranked = caption.ranked(self.classes, prediction["probability"], self.output_classes)
        return {"label": next(iter(ranked)), "probability": ranked}

    def draw(self, axes: Any, prediction: Prediction, threshold: float | None = None) -> None:
        """Writes the most probable classes into the image's corner."""
        del threshold
        ranked = caption.ranked(self.classes, prediction["probability"], self.output_classes)
        best = list(ranked.items())[:CAPTION_CLASSES]
        caption.write(axes, "\n".join(f"{name} {probability:.0%}" for name, probability in best))


def log_probabilities(raw: Float[Array, "batch classes"]) -> Float[Array, "batch classes"]:
    """Returns the log-probability of each class."""
    return jax.nn.log_softmax(raw.astype(jnp.float32))


class TopAccuracy:
    """Share of images whose class is the most probable one ("top1") or among the five most probable ("top5").

    With 5 classes or fewer there is no "top5". Images without a label are left out; without any the figures
    are NaN. Where only some classes are labelled, an image's class is ranked among these.
    """

    def __init__(self, *, name: str, class_count: int) -> None:
        self._name, self._class_count = name, class_count
        self._ranks: list[int] = []  # of the true class, 0 = most probable
        self._labels: list[int] = []

    def update(self, prediction: Prediction, target: Labels, geometry: Geometry) -> None:
        """Adds one image.

        Raises:
            UserError: the label is outside the table of classes.
        """
        del geometry
        label = int(target["label"])
        if label >= self._class_count:
            raise UserError(
                f"task {self._name!r}: expected labels below {self._class_count}, found {label}; list every "
                "class in the config"
            )
        labelled_classes = np.asarray(target.get("labelled", np.ones(self._class_count, bool)))
        if label >= 0 and labelled_classes[label]:
            order = np.argsort(-np.where(labelled_classes, np.asarray(prediction["probability"]), -1.0), kind="stable")
            self._ranks.append(int(np.flatnonzero(order == label)[0]))
            self._labels.append(label)

    def compute(self) -> dict[str, float]:
        """Returns "top1" and, where it says something, "top5"."""
        ranks = np.array(self._ranks)
        cut_offs = {"top1": 1} | ({"top5": 5} if self._class_count > 5 else {})
        return {name: float(np.mean(ranks < k)) if len(ranks) else float("nan") for name, k in cut_offs.items()}

    def constant(self) -> Constant:
        """Returns what the most frequent class reaches."""
        count = len(self._labels)
        share = float(np.bincount(self._labels).max() / count) if count else float("nan")
        return Constant(share, share_error(share, count), count, "labelled image")
