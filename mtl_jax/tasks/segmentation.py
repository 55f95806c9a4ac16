"""Semantic segmentation: one class per pixel, from the task's slice of the head on one level of the neck."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from mtl_jax.errors import UserError
from mtl_jax.tasks import dense
from mtl_jax.tasks.base import Constant, Geometry, ImageSize, Labels, Task, share_error
from mtl_jax.tasks.distillation import by_class_and_border, softened_divergence

OVERLAY_OPACITY = 0.6
BACKGROUND = "background"  # the class that is none of the others
TITLES = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy"}
UNLABELLED_LOGIT = -1e9  # of a class that nobody looked for: its probability is 0
IGNORE_LABEL = 255  # PASCAL VOC's
IGNORE_LABEL_OF_MANY = 65535  # where 255 is a class


def make(
    name: str,
    classes: Sequence[str],
    *,
    strides: Sequence[int] = (8,),
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    ignore_label: int | None = None,
    loss_stride: int = 4,
    dice_weight: float = 0.0,
    distillation_temperature: float = 2.0,
) -> Task:
    """Builds a segmentation task.

    Args:
        name: of the task.
        classes: names, in the order of the mask's values.
        strides: px per cell of the one level that the head reads.
        label_smoothing: share of the target that is spread over all classes, 0 to 1.
        class_weights: weight of each class in the loss; all 1 if None.
        ignore_label: mask value of void pixels, which count nowhere; 255 if None, or 65535 of more than 255 classes.
        loss_stride: px between the pixels that the loss compares; the cost falls with its square. It divides
            the level's stride.
        dice_weight: of the soft Dice loss, which is added to the cross-entropy and counts every class of a batch
            alike, however few its pixels.
        distillation_temperature: divides the logits of teacher and student.

    Raises:
        UserError: a setting is outside its range.
    """
    classes, strides = tuple(classes), tuple(strides)
    if ignore_label is None:
        ignore_label = IGNORE_LABEL if len(classes) <= IGNORE_LABEL else IGNORE_LABEL_OF_MANY
    dense.check_strides(name, "segmentation", strides, loss_stride)
    _check_settings(name, classes, label_smoothing, class_weights, ignore_label)
    if dice_weight < 0:
        raise UserError(f"task {name!r}: expected dice_weight >= 0, found {dice_weight}; change it")
    return Task(
        name=name,
        kind="segmentation",
        classes=classes,
        channels=len(classes),
        readout="dense",
        strides=strides,
        main_metric="miou",
        higher_is_better=True,
        loss=functools.partial(
            loss,
            stride=strides[0],
            loss_stride=loss_stride,
            ignore_label=ignore_label,
            label_smoothing=label_smoothing,
            dice_weight=dice_weight,
            class_weights=None if class_weights is None else tuple(map(float, class_weights)),
        ),
        distillation_loss=functools.partial(softened_divergence, temperature=distillation_temperature),
        balanced_distillation_loss=functools.partial(
            softened_divergence, temperature=distillation_temperature, weigh=by_class_and_border
        ),
        sampled_loss=sampled_loss,
        fill_in=functools.partial(
            fill_in,
            stride=strides[0],
            ignore_label=ignore_label,
            background=classes.index(BACKGROUND) if BACKGROUND in classes else None,
        ),
        finish=functools.partial(finish, stride=strides[0]),
        decode=decode,
        decode_raw=functools.partial(decode_raw, stride=strides[0]),
        meanings={"mask": "the class index of each pixel of the input"},
        no_labels=functools.partial(no_labels, ignore_label=ignore_label),
        new_metric=functools.partial(MeanIoU, name=name, classes=classes, ignore_label=ignore_label),
        answer=functools.partial(answer, classes=classes),
        draw=functools.partial(draw, classes=classes),
        at_original=dense.fields_at_original,
        ignore_label=ignore_label,
    )


def _check_settings(
    name: str,
    classes: tuple[str, ...],
    label_smoothing: float,
    class_weights: Sequence[float] | None,
    ignore_label: int,
) -> None:
    where = f"task {name!r}: expected "
    if len(classes) < 2:
        raise UserError(where + f"at least 2 classes, found {list(classes)}; list background too")
    if not 0 <= label_smoothing < 1:
        raise UserError(where + f"label_smoothing from 0 to below 1, found {label_smoothing}; change it")
    if class_weights is not None and (len(class_weights) != len(classes) or min(class_weights) < 0):
        raise UserError(where + f"{len(classes)} class_weights >= 0, found {list(class_weights)}; give one per class")
    if 0 <= ignore_label < len(classes):
        raise UserError(where + f"ignore_label outside the classes, found {ignore_label}; leave it out or take -1")


def loss(
    raw: Float[Array, "batch rows columns classes"],
    labels: Labels,
    image_size: ImageSize,
    *,
    stride: int,
    loss_stride: int,
    ignore_label: int,
    label_smoothing: float,
    class_weights: tuple[float, ...] | None,
    dice_weight: float,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Cross-entropy, averaged over the labelled pixels of the batch by the weight of their class, and soft Dice loss.

    The logits are interpolated to one pixel in `loss_stride` each way and compared with the mask there. Mask
    values outside the table count as void, as do those of classes that are not labelled in the image; the softmax is
    over the labelled ones alone, so that what one dataset calls background may be a class of another.

    References:
        Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (label smoothing), 2016.
        Milletari, Navab, Ahmadi, "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image
        Segmentation" (soft Dice loss), 2016.
    """
    del image_size
    rows, columns, class_count = raw.shape[1:]
    mask = dense.every_nth(labels["mask"], (rows * stride, columns * stride), loss_stride, missing=ignore_label)
    logits = dense.enlarge(raw.astype(jnp.float32), stride // loss_stride)
    labelled = (mask >= 0) & (mask < class_count) & (mask != ignore_label)
    target = jnp.where(labelled, mask, 0)
    among = labels.get("labelled")  # bool[batch, classes]
    if among is not None:
        among = jnp.asarray(among)
        labelled &= jnp.take_along_axis(among, target.reshape(len(target), -1), axis=1).reshape(target.shape)
        logits = jnp.where(among[:, None, None], logits, UNLABELLED_LOGIT)
    # On a CPU a fifth cheaper than log_softmax, which writes the log-probability of every class out.
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    cost = log_sum - jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    pixel_weight = jnp.ones_like(cost)
    weights = jnp.ones(class_count) if class_weights is None else jnp.asarray(class_weights, jnp.float32)
    if class_weights is not None:
        cost, pixel_weight = cost * weights[target], pixel_weight * weights[target]
    if label_smoothing:
        every_class = _every_class(logits, log_sum, weights, among)
        cost = (1 - label_smoothing) * cost + label_smoothing * every_class
    cost, pixel_weight = jnp.where(labelled, cost, 0.0), jnp.where(labelled, pixel_weight, 0.0)
    if "pseudo" in labels:
        pseudo = dense.every_nth(labels["pseudo"], (rows * stride, columns * stride), loss_stride, missing=-1)
        pseudo_cost, weight = _pseudo_cost(
            dense.enlarge(raw.astype(jnp.float32), stride // loss_stride), pseudo, weights
        )
        cost, pixel_weight = cost + pseudo_cost, pixel_weight + weight
    total = pixel_weight.sum()
    value = cost.sum() / jnp.where(total > 0, total, 1.0)
    if not dice_weight:
        return value, {"cross_entropy": value}
    dice = _soft_dice_loss(jnp.exp(logits - log_sum[..., None]), target, labelled)
    return value + dice_weight * dice, {"cross_entropy": value, "dice": dice}


def _pseudo_cost(
    logits: Float[Array, "b h w c"], pseudo: Int[Array, "b h w"], weights: Float[Array, " c"]
) -> tuple[Float[Array, "b h w"], Float[Array, "b h w"]]:
    """Cross-entropy of filled-in pixels among all classes, and their weight."""
    target = jnp.maximum(pseudo, 0)
    weight = jnp.where(pseudo >= 0, weights[target], 0.0)
    own = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    return weight * (jax.nn.logsumexp(logits, axis=-1) - own), weight


def _every_class(
    logits: Float[Array, "b h w c"],
    log_sum: Float[Array, "b h w"],
    weights: Float[Array, " c"],
    among: Bool[Array, "b c"] | None,
) -> Float[Array, "b h w"]:
    """The mean over the labelled classes of their cross-entropy."""
    if among is None:
        return (log_sum * weights.sum() - logits @ weights) / len(weights)
    spread = (among * weights[None] / jnp.maximum(among.sum(axis=-1, keepdims=True), 1))[:, None, None]
    return (spread * jnp.where(among[:, None, None], log_sum[..., None] - logits, 0.0)).sum(axis=-1)


def _soft_dice_loss(
    probabilities: Float[Array, "b h w c"], target: Int[Array, "b h w"], labelled: Bool[Array, "b h w"]
) -> Float[Array, ""]:
    """One less the Dice coefficient of each class over the whole batch, averaged over the classes that it shows."""
    probabilities = probabilities * labelled[..., None]
    truth = jax.nn.one_hot(target, probabilities.shape[-1]) * labelled[..., None]
    pixels = (0, 1, 2)
    size = truth.sum(pixels)
    overlap = 2 * (probabilities * truth).sum(pixels) / jnp.maximum(size + probabilities.sum(pixels), 1.0)
    shown = size > 0
    return jnp.where(shown, 1 - overlap, 0.0).sum() / jnp.maximum(shown.sum(), 1)


def no_labels(batch_size: int, image_size: ImageSize, *, ignore_label: int) -> Labels:
    """Returns masks of void pixels."""
    return {"mask": jnp.full((batch_size, *image_size), ignore_label)}


def fill_in(
    labels: Labels,
    teacher_raw: Float[Array, "batch rows columns classes"],
    image_size: ImageSize,
    threshold: float,
    *,
    stride: int,
    ignore_label: int,
    background: int | None,
) -> Labels:
    """Takes pixels out of what is labelled background for which another network is sure of an unlabelled class.

    They come as "pseudo" i32[batch, height, width], a class or -1.
    """
    if "labelled" not in labels or background is None:
        return labels
    mask, among = jnp.asarray(labels["mask"]), jnp.asarray(labels["labelled"])
    probability = jax.nn.softmax(teacher_raw.astype(jnp.float32))
    best = probability.argmax(axis=-1)
    unlabelled = ~jnp.take_along_axis(among, best.reshape(len(best), -1), axis=1).reshape(best.shape)
    sure = jnp.where(unlabelled & (probability.max(axis=-1) >= threshold), best, -1)
    sure = sure.repeat(stride, axis=1).repeat(stride, axis=2)[:, : image_size[0], : image_size[1]]
    sure = jnp.where(mask == background, sure, -1)
    return {**labels, "mask": jnp.where(sure >= 0, ignore_label, mask), "pseudo": sure}


def sampled_loss(
    raw: Float[Array, "batch rows columns classes"], image_size: ImageSize, key: Key[Array, ""]
) -> Float[Array, ""]:
    """Cross-entropy towards classes drawn from the prediction of every cell of the head, averaged over the cells."""
    del image_size
    log_p = jax.nn.log_softmax(raw.astype(jnp.float32))
    drawn = jax.random.categorical(key, jax.lax.stop_gradient(log_p))
    return -jnp.take_along_axis(log_p, drawn[..., None], axis=-1).mean()


def finish(
    raw: Float[Array, "batch rows columns classes"], image_size: ImageSize, *, stride: int
) -> Float[Array, "batch height width classes"]:
    """Interpolates the logits to the size of the input image."""
    return dense.enlarge(raw.astype(jnp.float32), stride)[:, : image_size[0], : image_size[1]]


def decode(outputs: Float[Array, "batch height width classes"]) -> dict[str, Array]:
    """Returns the best class of each pixel."""
    return {"mask": jnp.argmax(outputs, axis=-1).astype(jnp.int32)}


def decode_raw(
    raw: Float[Array, "batch rows columns classes"], image_size: ImageSize, *, stride: int
) -> dict[str, Array]:
    """Returns the best class of each pixel of the input image, without the logits of every pixel between."""
    height, width = image_size
    return {"mask": dense.enlarged_argmax(raw.astype(jnp.float32), stride)[:, :height, :width]}


class MeanIoU:
    """Mean intersection over union, from one confusion matrix of all pixels at the masks' original size.

    Classes that occur neither in a target nor in a prediction are left out of the mean. Void pixels count
    nowhere. Without any labelled pixel every figure is NaN. Where only some classes are labelled, predictions of the
    others are neither right nor wrong on what is labelled "background", which they may be, and misses elsewhere.
    """

    def __init__(self, *, name: str, classes: tuple[str, ...], ignore_label: int) -> None:
        self._name, self._classes, self._ignore_label = name, classes, ignore_label
        self.confusion = np.zeros((len(classes), len(classes)), np.int64)  # [target, prediction]
        self._missed = np.zeros(len(classes), np.int64)  # pixels that were given to an unlabelled class
        self._images = 0  # with a labelled pixel

    def update(self, prediction: Mapping[str, np.ndarray], target: Labels, geometry: Geometry) -> None:
        """Adds one image.

        Raises:
            UserError: the mask has another size than the image, or a value outside the table of classes.
        """
        truth = np.asarray(target["mask"]).astype(np.int64)
        dense.check_size(self._name, "mask", truth, geometry)
        labelled = truth != self._ignore_label
        count = len(self._classes)
        wrong = np.unique(truth[labelled & ((truth < 0) | (truth >= count))])
        if wrong.size:
            raise UserError(
                f"task {self._name!r}: expected mask values below {count} or {self._ignore_label} (void), "
                f"found {wrong[-1]}; list every class in the config, or set the task's ignore_label"
            )
        predicted = dense.at_original(np.asarray(prediction["mask"]), geometry).astype(np.int64)
        self._images += bool(labelled.any())
        if "labelled" in target:
            among = np.asarray(target["labelled"])
            labelled &= among[np.where(labelled, truth, 0)]
            elsewhere = labelled & ~among[predicted]
            labelled &= ~elsewhere
            missed = np.bincount(truth[elsewhere], minlength=count)
            self._missed += np.where([name == BACKGROUND for name in self._classes], 0, missed)
        pairs = truth[labelled] * count + predicted[labelled]
        self.confusion += np.bincount(pairs, minlength=count**2).reshape(count, count)

    def compute(self) -> dict[str, float]:
        """Returns "miou", "pixel_accuracy" and "iou/<class>" (NaN for a class that never occurs)."""
        hits = np.diag(self.confusion).astype(float)
        union = self.confusion.sum(axis=0) + self.confusion.sum(axis=1) + self._missed - hits
        total = self.confusion.sum() + self._missed.sum()
        iou = np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)
        figures = {
            "miou": float(iou[union > 0].mean()) if total else float("nan"),
            "pixel_accuracy": float(hits.sum() / total) if total else float("nan"),
        }
        return figures | {f"iou/{name}": float(value) for name, value in zip(self._classes, iou, strict=True)}

    def constant(self) -> Constant:
        """Returns what the most frequent class reaches, mostly the background: its share, by the classes."""
        pixels = self.confusion.sum(axis=1) + self._missed
        figure = float(pixels.max() / pixels.sum() / np.count_nonzero(pixels)) if pixels.any() else float("nan")
        return Constant(figure, share_error(figure, self._images), self._images, "image with a labelled pixel")


def palette(count: int) -> Float[np.ndarray, "count 3"]:
    """Returns a fixed colour for each class, RGB 0..1: PASCAL VOC's, the reversed bits of the index."""
    colours = np.zeros((count, 3), np.uint8)
    index = np.arange(count)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours / 255


def answer(
    prediction: Mapping[str, np.ndarray], threshold: float | None = None, *, classes: tuple[str, ...]
) -> dict[str, Any]:
    """Returns {"classes": {name: {"pixels", "share"}}, the largest first, and "mask", the class index of each pixel."""
    del threshold
    mask = np.asarray(prediction["mask"]).astype(np.min_scalar_type(len(classes) - 1))
    pixels = np.bincount(mask.ravel(), minlength=len(classes))
    present = [index for index in np.argsort(-pixels, kind="stable") if pixels[index]]
    shares = {
        classes[index]: {"pixels": int(pixels[index]), "share": round(float(pixels[index] / mask.size), 6)}
        for index in present
    }
    return {"classes": shares, "mask": mask}


def draw(
    axes: Any, prediction: Mapping[str, np.ndarray], threshold: float | None = None, *, classes: tuple[str, ...]
) -> None:
    """Lays the mask over the image, with a legend of the classes in it; a class "background" stays clear."""
    from matplotlib.patches import Patch  # slow to import

    del threshold
    mask: Int[np.ndarray, "height width"] = np.asarray(prediction["mask"])
    opacity = np.array([0.0 if name == BACKGROUND else OVERLAY_OPACITY for name in classes])
    colours = np.concatenate([palette(len(classes)), opacity[:, None]], axis=1)
    axes.imshow(colours[mask], interpolation="nearest")
    present = [index for index in np.unique(mask) if opacity[index]]
    if present:
        handles = [Patch(color=tuple(colours[index, :3]), label=classes[index]) for index in present]
        axes.legend(handles=handles, fontsize="x-small", loc="lower right")
