"""Choice of training settings for a dataset: sizes, batches, lengths, augmentation, a detector's strides."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from mtl_jax.own_data.machine import Machine
from mtl_jax.own_data.request import TASK_KINDS
from mtl_jax.own_data.summary import DatasetSummary, tenths

STEP = 32  # px; sizes are multiples of it
SIZES = (512, 448, 384, 320, 288, 256, 224, 192, 160, 128, 96)  # px, of inputs
REFERENCE_PX = 512  # the side that `Machine.image_seconds` is of
LEAST = {
    "masks": 128,
    "depth": 128,
    "boxes": 160,
    "tags": 96,
    "classes": 96,
    "values": 96,
}  # px, unless images are smaller
MOST = {"tags": 288, "classes": 288, "values": 224}  # px; of whole images little more is gained
EPOCHS = {"masks": 40.0, "depth": 40.0, "boxes": 100.0, "tags": 30.0, "classes": 24.0, "values": 24.0}
SHORT_STEPS = 1000  # of a detector's stage; below, it learns more without mosaics and at a higher rate
LEAST_SECONDS = 5.0  # of a stage, however short the run should be
LEAST_STEPS, ENOUGH_STEPS = 60, 300  # of a stage: never fewer; few images are shown more often for so many
MOST_BOXES, MOSAIC = 256, 2  # of an input; four images in one hold more boxes than one, cropped parts of them
LEAST_BOX_PX = 12  # that small boxes have in the input, where the images allow it
ALONG = {"masks", "depth", "boxes"}  # labels that lie somewhere in the image
BACKGROUND_SHARE, BACKGROUND_WEIGHT = 0.5, 0.3  # a class with more of the pixels drowns the others
EVALUATED = 0.3  # of a training step's time, that measuring an image takes
HELD = 1.5  # times a step's time, where distillation and replay hold the older tasks
TIME_SHARES = {"boxes": 3.0}  # of the time for training; 1 of other kinds: few cells of a detector see an object
SIDES = re.compile(r"(?<![a-z])(left|right|[lr])(?![a-z])", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One task's stream and stage.

    Attributes:
        dataset: what it is chosen for.
        image_size: of validation images, px.
        train_image_size: of training crops, px.
        batch_size: of a training step.
        eval_batch_size: of validation.
        epochs: over its own training images.
        max_boxes: of an image.
        crop: show the largest square.
        augment: settings of `data.transforms.Augment`.
        task: kind and settings of the task, but for its classes.
        seconds: that training is expected to take.
    """

    dataset: DatasetSummary
    image_size: int
    train_image_size: int
    batch_size: int
    eval_batch_size: int
    epochs: float
    max_boxes: int
    crop: bool
    augment: dict[str, Any]
    task: dict[str, Any]
    seconds: float

    @property
    def steps(self) -> int:
        """Of its stage."""
        return math.ceil(self.epochs * max(1, self.dataset.train // self.batch_size))

    @property
    def learning_rate(self) -> float:
        """Of a stage that moves shared kernels."""
        return 4e-3 if self.dataset.request.kind == "boxes" and self.steps < SHORT_STEPS else 2e-3


class _Stage(NamedTuple):
    dataset: DatasetSummary
    machine: Machine
    measured_tasks: int  # that are measured on its validation images, now and after later stages
    is_held: bool  # distillation and replay hold the older tasks

    @property
    def crop(self) -> bool:
        """Whether the largest square of an image is shown: labels of whole images need no more."""
        return self.dataset.request.kind not in ALONG

    def cost(self, size: int, epochs: float) -> float:
        """Seconds of training at the size of the crops, and of measuring at the full one."""
        training = epochs * self.dataset.train * _train_size(size, self.dataset.request.kind) ** 2
        measuring = EVALUATED * self.measured_tasks * self.dataset.val * size**2
        return (training * (HELD if self.is_held else 1.0) + measuring) * self.machine.image_seconds / REFERENCE_PX**2


def choose(datasets: Sequence[DatasetSummary], machine: Machine, *, minutes: float) -> tuple[Choice, ...]:
    """Chooses for all datasets of a run.

    Args:
        datasets: the datasets.
        machine: that trains.
        minutes: that the run should take, all together.

    Returns:
        A choice for each.
    """
    count = len(datasets)
    stages = [
        _Stage(dataset, machine, count - k, is_held=0 < k < max(count - 1, 2)) for k, dataset in enumerate(datasets)
    ]
    seconds = 60 * minutes - machine.start_seconds - machine.stage_seconds * count
    return tuple(map(_choose, stages, _seconds_of_stages(stages, seconds)))


def _seconds_of_stages(stages: Sequence[_Stage], seconds: float) -> list[float]:
    """Divides the time for training by `TIME_SHARES`; what one stage cannot use goes to the others."""
    weights = [TIME_SHARES.get(stage.dataset.request.kind, 1.0) for stage in stages]
    useful = [_choose(stage, math.inf).seconds for stage in stages]
    divided, remaining_weight = dict.fromkeys(range(len(stages)), 0.0), sum(weights)
    for k in sorted(divided, key=lambda k: useful[k] / weights[k]):
        divided[k] = min(useful[k], seconds * weights[k] / remaining_weight)
        seconds, remaining_weight = seconds - divided[k], remaining_weight - weights[k]
    return [max(share, LEAST_SECONDS) for share in divided.values()]


def _choose(stage: _Stage, seconds: float) -> Choice:
    dataset, kind = stage.dataset, stage.dataset.request.kind
    batch = _batch_size(dataset, stage.machine)
    epochs_wanted = max(EPOCHS[kind], ENOUGH_STEPS * batch / dataset.train)
    size = _size(stage, epochs_wanted, seconds)
    an_epoch = stage.cost(size, 1.0) - stage.cost(size, 0.0)
    least = LEAST_STEPS * batch / dataset.train
    epochs = _rounded(min(epochs_wanted, max((seconds - stage.cost(size, 0.0)) / an_epoch, least)))
    return Choice(
        dataset=dataset,
        image_size=size,
        train_image_size=_train_size(size, kind),
        batch_size=batch,
        eval_batch_size=min(8, dataset.val),
        epochs=epochs,
        max_boxes=min(MOST_BOXES, max(16, -(-MOSAIC * dataset.most_boxes // 8) * 8)),
        crop=stage.crop,
        augment=_augment(dataset, crop=stage.crop, steps=epochs * max(1, dataset.train // batch)),
        task={"kind": TASK_KINDS[kind], **_TASKS.get(kind, lambda dataset, size: {})(dataset, size)},
        seconds=stage.cost(size, epochs),
    )


def _batch_size(dataset: DatasetSummary, machine: Machine) -> int:
    most = 32 if machine.accelerated else 8 if dataset.request.kind in ALONG else 16
    return max(1, min(most, dataset.train))


def _size(stage: _Stage, epochs_wanted: float, seconds: float) -> int:
    """The largest size, not above what the images have, at which there is time for enough epochs."""
    dataset, kind = stage.dataset, stage.dataset.request.kind
    native = max(SIZES[-1], round(dataset.long_side / STEP) * STEP)
    most = min(native, MOST.get(kind, SIZES[0]))
    least = min(most, LEAST[kind])
    sizes = [size for size in SIZES if least <= size <= most]
    sizes_seen = [size for size in sizes if size >= _seen_from(dataset)] or sizes[:1]
    for candidates, share in ((sizes_seen, 1.0), (sizes_seen, 0.3), (sizes, 0.3)):
        for size in candidates:
            if stage.cost(size, share * epochs_wanted) <= seconds:
                return size
    return sizes[-1]


def _seen_from(dataset: DatasetSummary) -> float:
    """From what size on small boxes have enough pixels."""
    return LEAST_BOX_PX / max(tenths(dataset.box_shares)[0], 1e-3) if dataset.box_shares else 0.0


def _rounded(epochs: float) -> float:
    return float(f"{epochs:.2g}") if epochs < 10 else float(round(epochs))


def _train_size(size: int, kind: str) -> int:
    """Crops of three quarters: they magnify squares (Touvron et al., 2019), and make steps cheaper.

    Boxes are looked for at the size of the crops: a crop never shows an object that fills a larger image.
    """
    if kind == "boxes" or (kind in ALONG and size < 256):
        return size
    return max(STEP, round(0.77 * size / STEP) * STEP)


def _augment(dataset: DatasetSummary, *, crop: bool, steps: float) -> dict[str, Any]:
    settings: dict[str, Any] = {"scale_min": 0.8, "scale_max": 1.6, "random_position": True}
    if crop:
        settings |= {"scale_min": 1.0, "scale_max": 1.7, "aspect": 1.2}
    if not any(SIDES.search(name) for name in dataset.classes):  # a mirrored left hand is a right one
        settings["flip_probability"] = 0.5
    if dataset.request.kind != "depth":
        settings |= {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3}
    if dataset.request.kind == "boxes" and steps >= SHORT_STEPS:
        settings["mosaic_probability"] = 0.5
    return settings


def _segmentation(dataset: DatasetSummary, size: int) -> dict[str, Any]:
    total = sum(dataset.counts.values()) or 1
    weights = [
        BACKGROUND_WEIGHT if dataset.counts[name] > BACKGROUND_SHARE * total else 1.0 for name in dataset.classes
    ]
    settings = {"loss_stride": 4 if size >= 256 else 2, "dice_weight": 1.0}
    return {**settings, "class_weights": tuple(weights)} if min(weights) < 1 else settings


def strides(dataset: DatasetSummary, size: int) -> tuple[int, ...]:
    """Returns the levels that a detector's boxes need: a cell finds boxes of about 2 to 12 times its side.

    Args:
        dataset: boxes.
        size: of the input, px.
    """
    if not dataset.box_shares:
        return (8, 16, 32)
    small, _, large = (share * size for share in tenths(dataset.box_shares))
    return tuple(stride for stride in (8, 16, 32) if small <= 12 * stride and large >= 2 * stride) or (8,)


def _detection(dataset: DatasetSummary, size: int) -> dict[str, Any]:
    return {"strides": strides(dataset, size)}


def _regression(dataset: DatasetSummary, size: int) -> dict[str, Any]:
    del size
    return {"center": float(f"{dataset.center:.4g}"), "scale": float(f"{dataset.scale:.4g}")}


def _depth(dataset: DatasetSummary, size: int) -> dict[str, Any]:
    del size
    return {"center": float(f"{dataset.center:.3g}"), "max_depth": max(10.0, float(math.ceil(1.5 * dataset.farthest)))}


_TASKS = {
    "masks": _segmentation,
    "boxes": _detection,
    "values": _regression,
    "depth": _depth,
    "classes": lambda dataset, size: {"label_smoothing": 0.1} if len(dataset.classes) > 2 else {},
}
