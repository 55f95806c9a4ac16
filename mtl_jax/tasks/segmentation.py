"""Semantic segmentation: one class per pixel, from the task's slice of the head on one level of the neck."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from mtl_jax.config.section import setting
from mtl_jax.errors import UserError
from mtl_jax.tasks import dense
from mtl_jax.tasks.base import (
    Geometry,
    ImageSize,
    Labels,
    LossAndParts,
    Prediction,
    Task,
    enough_classes,
)
from mtl_jax.tasks.distillation import by_class_and_border, softened_divergence
from mtl_jax.tasks.mean_iou import BACKGROUND, MeanIoU

OVERLAY_OPACITY = 0.6
UNLABELLED_LOGIT = -1e9  # of a class that nobody looked for: its probability is 0
IGNORE_LABEL = 255  # PASCAL VOC's
IGNORE_LABEL_OF_MANY = 65535  # where 255 is a class

Logits = Float[Array, "batch rows columns classes"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmentation(Task):
    """One class per pixel; `classes` are in the order of the mask's values, the background among them."""

    kind = "segmentation"
    readout = "dense"
    outputs = "the logit of each class at each pixel of the input"
    main_metric = "miou"
    titles: ClassVar[Mapping[str, str]] = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy"}

    strides: tuple[int, ...] = setting((8,), "of the one level that the head reads", unit="px", least=1)
    label_smoothing: float = setting(0.0, "share of the target that is spread over all classes", least=0.0, below=1.0)
    class_weights: tuple[float, ...] | None = setting(
        None, "weight of each class in the loss; all 1 if None", least=0.0
    )
    ignore_label: int | None = setting(
        None, "mask value of void pixels, which count nowhere; 255 if None, or 65535 of more than 255 classes"
    )
    loss_stride: int = setting(
        4,
        "between the pixels that the loss compares; the cost falls with its square; divides the level's stride",
        unit="px",
        least=1,
    )
    dice_weight: float = setting(
        0.0,
        "of the soft Dice loss, which is added to the cross-entropy and counts every class of a batch alike, however "
        "few its pixels",
        least=0.0,
    )
    distillation_temperature: float = setting(2.0, "divides the logits of teacher and student", above=0.0)

    def check(self) -> None:
        """Checks what the settings mean for each other.

        Raises:
            UserError: names the one that does not fit.
        """
        enough_classes(self.classes, 2, "list background too")
        dense.check_strides(self.kind, self.strides, self.loss_stride)
        weights = self.class_weights
        if weights is not None and (len(weights) != len(self.classes) or not any(weights)):
            raise UserError(
                f"class_weights: expected {len(self.classes)} class_weights, one above 0, found {list(weights)}; give "
                "one per class"
            )
        if 0 <= self.void < len(self.classes):
            raise UserError(
                f"ignore_label: expected ignore_label outside the classes, found {self.void}; leave it out or take -1"
            )

    @property
    def void(self) -> int:
        """The mask value of pixels that count nowhere."""
        if self.ignore_label is not None:
            return self.ignore_label
        return IGNORE_LABEL if len(self.classes) <= IGNORE_LABEL else IGNORE_LABEL_OF_MANY

    @property
    def meanings(self) -> Mapping[str, str]:
        """Meaning of each prediction."""
        return {"mask": "the class index of each pixel of the input"}

    def loss(self, raw: Logits, labels: Labels, image_size: ImageSize) -> LossAndParts:
        """Cross-entropy, averaged over the batch's labelled pixels by the weight of their class, and soft Dice loss.

        The logits are interpolated to one pixel in `loss_stride` each way and compared with the mask there. Mask
        values outside the table count as void, as do those of classes that are not labelled in the image; the softmax
        is over the labelled ones alone, so that what one dataset calls background may be a class of another.

        References:
            Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (label smoothing), 2016.
            Milletari, Navab, Ahmadi, "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image
            Segmentation" (soft Dice loss), 2016.
        """
        del image_size
        mask = self._every_nth(labels["mask"], raw, missing=self.void)
        logits = self._enlarged(raw)
        labelled = (mask >= 0) & (mask < len(self.classes)) & (mask != self.void)
        target = jnp.where(labelled, mask, 0)
        labelled_classes = labels.get("labelled")  # bool[batch, classes]
        if labelled_classes is not None:
            labelled_classes = jnp.asarray(labelled_classes)
            labelled &= jnp.take_along_axis(labelled_classes, target.reshape(len(target), -1), axis=1).reshape(
                target.shape
            )
            competing = labelled_classes[:, None, None]
            if "complete" in labels:
                competing |= self._every_nth(labels["complete"], raw, missing=False)[..., None]
            logits = jnp.where(competing, logits, UNLABELLED_LOGIT)
        # On a CPU a fifth cheaper than log_softmax, which writes the log-probability of every class out.
        log_sum = jax.nn.logsumexp(logits, axis=-1)
        cost, weight = self._pixel_cost(logits, log_sum, target, labelled_classes)
        cost, weight = jnp.where(labelled, cost, 0.0), jnp.where(labelled, weight, 0.0)
        if "pseudo" in labels:
            pseudo = self._every_nth(labels["pseudo"], raw, missing=-1)
            pseudo_cost, pseudo_weight = _pseudo_cost(self._enlarged(raw), pseudo, self._weights())
            cost, weight = cost + pseudo_cost, weight + pseudo_weight
        total = weight.sum()
        value = cost.sum() / jnp.where(total > 0, total, 1.0)
        if not self.dice_weight:
            return value, {"cross_entropy": value}
        dice = _soft_dice_loss(jnp.exp(logits - log_sum[..., None]), target, labelled)
        return value + self.dice_weight * dice, {"cross_entropy": value, "dice": dice}

    def _every_nth(
        self, labels: Shaped[Array, "b height width"], raw: Logits, *, missing: int
    ) -> Shaped[Array, "b h w"]:
        """The labels of the pixels that the loss compares."""
        covered_size = (raw.shape[1] * self.strides[0], raw.shape[2] * self.strides[0])
        return dense.every_nth(labels, covered_size, self.loss_stride, missing=missing)

    def _enlarged(self, raw: Logits) -> Float[Array, "b h w c"]:
        """The logits of these pixels."""
        return dense.enlarge(raw.astype(jnp.float32), self.strides[0] // self.loss_stride)

    def _weights(self) -> Float[Array, " c"]:
        if self.class_weights is None:
            return jnp.ones(len(self.classes))
        return jnp.asarray(self.class_weights, jnp.float32)

    def _pixel_cost(
        self,
        logits: Float[Array, "b h w c"],
        log_sum: Float[Array, "b h w"],
        target: Int[Array, "b h w"],
        labelled_classes: Bool[Array, "b c"] | None,
    ) -> tuple[Float[Array, "b h w"], Float[Array, "b h w"]]:
        """Weighted cross-entropy of every pixel, and its weight."""
        cost = log_sum - jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        weight = jnp.ones_like(cost)
        weights = self._weights()
        if self.class_weights is not None:
            cost, weight = cost * weights[target], weight * weights[target]
        if self.label_smoothing:
            every_class = _every_class(logits, log_sum, weights, labelled_classes)
            cost = (1 - self.label_smoothing) * cost + self.label_smoothing * every_class
        return cost, weight

    def sampled_loss(self, raw: Logits, image_size: ImageSize, key: Key[Array, ""]) -> Float[Array, ""]:
        """Cross-entropy towards classes drawn from the prediction of every cell of the head, averaged."""
        del image_size
        log_p = jax.nn.log_softmax(raw.astype(jnp.float32))
        sampled = jax.random.categorical(key, jax.lax.stop_gradient(log_p))
        return -jnp.take_along_axis(log_p, sampled[..., None], axis=-1).mean()

    def distillation_loss(
        self, raw: Logits, teacher_raw: Logits, image_size: ImageSize, *, balanced: bool = False
    ) -> Float[Array, ""]:
        """KL(teacher || student) of every cell; balanced, by the rarity of what the teacher sees, and its borders."""
        del image_size
        weigh = by_class_and_border if balanced else None
        return softened_divergence(raw, teacher_raw, temperature=self.distillation_temperature, weigh=weigh)

    def no_labels(self, batch_size: int, image_size: ImageSize) -> Labels:
        """Returns masks of void pixels."""
        return {"mask": jnp.full((batch_size, *image_size), self.void)}

    def fill_in(self, labels: Labels, teacher_raw: Logits, image_size: ImageSize, threshold: float) -> Labels:
        """Fills in where another network is sure that a pixel shows an unlabelled class, or that it shows none.

        Background pixels of the first kind become void and come as "pseudo" i32[batch, height, width], a class or -1.
        Pixels of the second kind are marked by "complete" bool[batch, height, width], and so is every pixel with the
        label of an object, which shows no other: there all classes compete.
        """
        if "labelled" not in labels or BACKGROUND not in self.classes:
            return labels
        mask, labelled_classes = jnp.asarray(labels["mask"]), jnp.asarray(labels["labelled"])
        probability = jax.nn.softmax(teacher_raw.astype(jnp.float32))
        best = probability.argmax(axis=-1)
        unlabelled = ~jnp.take_along_axis(labelled_classes, best.reshape(len(best), -1), axis=1).reshape(best.shape)
        sure = jnp.where(unlabelled & (probability.max(axis=-1) >= threshold), best, -1)
        absent = jnp.where(labelled_classes[:, None, None], probability, 0.0).sum(axis=-1) >= threshold
        sure, absent = (dense.repeated(cells, self.strides[0], image_size) for cells in (sure, absent))
        is_background = mask == self.classes.index(BACKGROUND)
        sure = jnp.where(is_background, sure, -1)
        return {
            **labels,
            "mask": jnp.where(sure >= 0, self.void, mask),
            "pseudo": sure,
            "complete": absent | ~is_background,
        }

    def finish(self, raw: Logits, image_size: ImageSize) -> Float[Array, "batch height width classes"]:
        """Interpolates the logits to the size of the input image."""
        return dense.enlarge(raw.astype(jnp.float32), self.strides[0])[:, : image_size[0], : image_size[1]]

    def decode(self, outputs: Float[Array, "batch height width classes"]) -> dict[str, Array]:
        """Returns the best class of each pixel."""
        return {"mask": jnp.argmax(outputs, axis=-1).astype(jnp.int32)}

    def predictions(self, raw: Logits, image_size: ImageSize) -> dict[str, Array]:
        """Returns the best class of each pixel of the input image, without the logits of every pixel between."""
        height, width = image_size
        return {"mask": dense.enlarged_argmax(raw.astype(jnp.float32), self.strides[0])[:, :height, :width]}

    def at_original(self, prediction: Prediction, geometry: Geometry) -> Prediction:
        """Looks the mask up for the pixels of the original."""
        return dense.fields_at_original(prediction, geometry)

    def new_metric(self) -> MeanIoU:
        """Returns the mean intersection over union, of nothing so far."""
        return MeanIoU(name=self.name, classes=self.classes, ignore_label=self.void)

    def to_json(self, prediction: Prediction, threshold: float | None = None) -> dict[str, Any]:
        """Returns {"classes": {name: {"pixels", "share"}}, the largest first, and "mask", each pixel's class index."""
        del threshold
        count = len(self.classes)
        mask = np.asarray(prediction["mask"]).astype(np.min_scalar_type(count - 1))
        pixels = np.bincount(mask.ravel(), minlength=count)
        shown_classes = [index for index in np.argsort(-pixels, kind="stable") if pixels[index]]
        shares = {
            self.classes[index]: {"pixels": int(pixels[index]), "share": round(float(pixels[index] / mask.size), 6)}
            for index in shown_classes
        }
        return {"classes": shares, "mask": mask}

    def draw(self, axes: Any, prediction: Prediction, threshold: float | None = None) -> None:
        """Lays the mask over the image, with a legend of the classes in it; a class "background" stays clear."""
        from matplotlib.patches import Patch  # slow to import

        del threshold
        mask: Int[np.ndarray, "height width"] = np.asarray(prediction["mask"])
        opacity = np.array([0.0 if name == BACKGROUND else OVERLAY_OPACITY for name in self.classes])
        colours = np.concatenate([palette(len(self.classes)), opacity[:, None]], axis=1)
        axes.imshow(colours[mask], interpolation="nearest")
        shown_classes = [index for index in np.unique(mask) if opacity[index]]
        if shown_classes:
            handles = [Patch(color=tuple(colours[index, :3]), label=self.classes[index]) for index in shown_classes]
            axes.legend(handles=handles, fontsize="x-small", loc="lower right")


def _pseudo_cost(
    logits: Float[Array, "b h w c"], pseudo: Int[Array, "b h w"], weights: Float[Array, " c"]
) -> tuple[Float[Array, "b h w"], Float[Array, "b h w"]]:
    """Cross-entropy of filled-in pixels among all classes, and their weight."""
    target = jnp.maximum(pseudo, 0)
    weight = jnp.where(pseudo >= 0, weights[target], 0.0)
    target_logits = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    return weight * (jax.nn.logsumexp(logits, axis=-1) - target_logits), weight


def _every_class(
    logits: Float[Array, "b h w c"],
    log_sum: Float[Array, "b h w"],
    weights: Float[Array, " c"],
    labelled_classes: Bool[Array, "b c"] | None,
) -> Float[Array, "b h w"]:
    """The mean over the labelled classes of their cross-entropy."""
    if labelled_classes is None:
        return (log_sum * weights.sum() - logits @ weights) / len(weights)
    pixel_cost = (labelled_classes * weights[None] / jnp.maximum(labelled_classes.sum(axis=-1, keepdims=True), 1))[
        :, None, None
    ]
    return (pixel_cost * jnp.where(labelled_classes[:, None, None], log_sum[..., None] - logits, 0.0)).sum(axis=-1)


def _soft_dice_loss(
    probabilities: Float[Array, "b h w c"], target: Int[Array, "b h w"], labelled: Bool[Array, "b h w"]
) -> Float[Array, ""]:
    """One less the Dice coefficient of each class over the whole batch, averaged over the classes that it shows."""
    probabilities = probabilities * labelled[..., None]
    truth = jax.nn.one_hot(target, probabilities.shape[-1]) * labelled[..., None]
    pixels = (0, 1, 2)
    size = truth.sum(pixels)
    overlap = 2 * (probabilities * truth).sum(pixels) / jnp.maximum(size + probabilities.sum(pixels), 1.0)
    is_shown = size > 0
    return jnp.where(is_shown, 1 - overlap, 0.0).sum() / jnp.maximum(is_shown.sum(), 1)


def palette(count: int) -> Float[np.ndarray, "count 3"]:
    """Returns a fixed colour for each class, RGB 0..1: PASCAL VOC's, the reversed bits of the index."""
    colours = np.zeros((count, 3), np.uint8)
    index = np.arange(count)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours / 255
