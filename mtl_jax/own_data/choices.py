"""Choice of training settings for a dataset: sizes, batches, lengths, augmentation, a detector's strides."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from mtl_jax.config.stream_settings import StreamSettings
from mtl_jax.own_data.machine import Machine
from mtl_jax.own_data.request import TASK_KINDS
from mtl_jax.own_data.summary import DatasetSummary, decile_summary

STEP = 32  # px; all sizes are multiples
SIZES = (512, 448, 384, 320, 288, 256, 224, 192, 160, 128, 96)  # px; candidate input sizes
REFERENCE_PX = 512  # image size of `Machine.image_seconds`
MIN_SIZE = {
    "masks": 128,
    "depth": 128,
    "boxes": 160,
    "tags": 96,
    "classes": 96,
    "values": 96,
}  # px, by kind; smaller for smaller images
MAX_SIZE = {"tags": 288, "classes": 288, "values": 224}  # px; larger inputs gain little for labels of whole images
EPOCHS = {"masks": 40.0, "depth": 40.0, "boxes": 100.0, "tags": 30.0, "classes": 24.0, "values": 24.0}
LATER_EPOCHS = {"boxes": 200.0}  # of classes that a task gets later, where only parameters of their own are trained
REFINING_RATE = 1e-3  # of more labels for what a network has learnt, which higher rates would first take apart
SHORT_STEPS = 1000  # of a detector's stage; shorter stages learn more without mosaics and at a higher rate
MIN_STAGE_SECONDS = 5.0  # minimum duration of a stage
MIN_STEPS, TARGET_STEPS = 60, 300  # of a stage; small datasets get more epochs to reach the target
MAX_BOXES, MOSAIC_FACTOR = 256, 2  # boxes of an input; a mosaic of four cropped images has more boxes than one image
MIN_BOX_PX = 12  # target side of small boxes in the input
SPATIAL_KINDS = {"masks", "depth", "boxes"}  # labels with a position in the image
BACKGROUND_SHARE, BACKGROUND_WEIGHT = 0.5, 0.3  # weight of a class with more than this share of the pixels
EVALUATION_COST = 0.3  # time to evaluate an image, relative to a training step
CONTINUAL_COST = 1.5  # time of a step with distillation and replay, relative to one without
TIME_SHARES = {
    "boxes": 3.0
}  # relative share of the training time, 1 for other kinds: few cells of a detector contain objects
SIDES = re.compile(r"(?<![a-z])(left|right|[lr])(?![a-z])", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Choice:
    """Training settings of a dataset: its stream and its stage.

    Attributes:
        dataset: the dataset.
        image_size: size of validation images, px.
        train_image_size: size of training crops, px.
        batch_size: batch size of a training step.
        eval_batch_size: batch size of the validation.
        epochs: epochs over its training images.
        max_boxes: largest number of boxes of an image.
        crop: whether images are cropped to their largest square.
        augment: settings of `data.transforms.Augment`.
        task: kind and settings of the task, without its classes.
        learning_rate: of a stage that trains shared kernels.
        seconds: estimated training time.
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
    learning_rate: float
    seconds: float

    @property
    def steps(self) -> int:
        """Number of steps of the stage."""
        return _steps(self.epochs, self.dataset, self.batch_size)


class Growth(NamedTuple):
    """How a finished run gets a dataset.

    Attributes:
        passes: time of a step, relative to one that trains a task alone: old tasks that may change are retained in it.
        like: the old run's stream of the same task. Images are shown as in it, as the network is trained for them.
        is_later: whether classes are added to a task, and only parameters of their own are trained.
        is_refined: whether the labels are more of what a task has learnt.
    """

    passes: float = 1.0
    like: StreamSettings | None = None
    is_later: bool = False
    is_refined: bool = False


class _Stage(NamedTuple):
    dataset: DatasetSummary
    machine: Machine
    evaluation_count: int  # evaluations of its validation images, in this stage and later ones
    is_continual: bool  # whether distillation and replay retain older tasks
    growth: Growth

    @property
    def target_epochs(self) -> float:
        """Epochs that its labels need."""
        kind = self.dataset.request.kind
        return LATER_EPOCHS.get(kind, EPOCHS[kind]) if self.growth.is_later else EPOCHS[kind]

    @property
    def crop(self) -> bool:
        """Whether images are cropped to their largest square, which suffices for labels of whole images."""
        like = self.growth.like
        return like.crop if like else self.dataset.request.kind not in SPATIAL_KINDS

    def train_size(self, size: int) -> int:
        """Returns the crop size for validation images of a size, px."""
        like = self.growth.like
        return like.train_image_size or size if like else _train_size(size, self.dataset.request.kind)

    def cost(self, size: int, epochs: float) -> float:
        """Estimated seconds of training at the crop size and of evaluation at the full size."""
        training = epochs * self.dataset.train * self.train_size(size) ** 2
        measuring = EVALUATION_COST * self.evaluation_count * self.dataset.val * size**2
        passes = self.growth.passes * (CONTINUAL_COST if self.is_continual else 1.0)
        return (training * passes + measuring) * self.machine.image_seconds / REFERENCE_PX**2


def choose(
    datasets: Sequence[DatasetSummary], machine: Machine, *, minutes: float, growth: Growth | None = None
) -> tuple[Choice, ...]:
    """Chooses the training settings of all datasets of a run.

    Args:
        datasets: the datasets.
        machine: the machine that trains.
        minutes: target duration of the whole run.
        growth: how a finished run gets them; None for a run of their own.

    Returns:
        A choice for each dataset.
    """
    count = len(datasets)
    stages = [
        _Stage(
            dataset,
            machine,
            count - k,
            is_continual=growth is None and 0 < k < max(count - 1, 2),
            growth=growth or Growth(),
        )
        for k, dataset in enumerate(datasets)
    ]
    seconds = 60 * minutes - machine.start_seconds - machine.stage_seconds * count
    return tuple(map(_choose, stages, _seconds_of_stages(stages, seconds)))


def _seconds_of_stages(stages: Sequence[_Stage], seconds: float) -> list[float]:
    """Divides the training time by `TIME_SHARES`; time that a stage cannot use goes to the others."""
    weights = [TIME_SHARES.get(stage.dataset.request.kind, 1.0) for stage in stages]
    needed_seconds = [_choose(stage, math.inf).seconds for stage in stages]
    divided, remaining_weight = dict.fromkeys(range(len(stages)), 0.0), sum(weights)
    for k in sorted(divided, key=lambda k: needed_seconds[k] / weights[k]):
        divided[k] = min(needed_seconds[k], seconds * weights[k] / remaining_weight)
        seconds, remaining_weight = seconds - divided[k], remaining_weight - weights[k]
    return [max(share, MIN_STAGE_SECONDS) for share in divided.values()]


def _choose(stage: _Stage, seconds: float) -> Choice:
    dataset, kind = stage.dataset, stage.dataset.request.kind
    batch = _batch_size(dataset, stage.machine)
    target_epochs = max(stage.target_epochs, TARGET_STEPS * batch / dataset.train)
    size = _size(stage, target_epochs, seconds)
    epoch_seconds = stage.cost(size, 1.0) - stage.cost(size, 0.0)
    min_epochs = MIN_STEPS * batch / dataset.train
    epochs = _round_epochs(min(target_epochs, max((seconds - stage.cost(size, 0.0)) / epoch_seconds, min_epochs)))
    steps = _steps(epochs, dataset, batch)
    return Choice(
        dataset=dataset,
        image_size=size,
        train_image_size=stage.train_size(size),
        batch_size=batch,
        eval_batch_size=min(8, dataset.val),
        epochs=epochs,
        max_boxes=min(MAX_BOXES, max(16, -(-MOSAIC_FACTOR * dataset.most_boxes // 8) * 8)),
        crop=stage.crop,
        augment=_augment(stage, steps),
        task={"kind": TASK_KINDS[kind], **({} if stage.growth.like else _task_settings(dataset, size))},
        learning_rate=_learning_rate(stage, steps),
        seconds=stage.cost(size, epochs),
    )


def _batch_size(dataset: DatasetSummary, machine: Machine) -> int:
    limit = 32 if machine.accelerated else 8 if dataset.request.kind in SPATIAL_KINDS else 16
    return max(1, min(limit, dataset.train))


def _size(stage: _Stage, target_epochs: float, seconds: float) -> int:
    """Returns the largest size, up to the size of the images, that leaves time for enough epochs."""
    if stage.growth.like:
        return stage.growth.like.image_size
    dataset, kind = stage.dataset, stage.dataset.request.kind
    native = max(SIZES[-1], round(dataset.long_side / STEP) * STEP)
    largest = min(native, MAX_SIZE.get(kind, SIZES[0]))
    smallest = min(largest, MIN_SIZE[kind])
    sizes = [size for size in SIZES if smallest <= size <= largest]
    sufficient_sizes = [size for size in sizes if size >= _min_size_for_boxes(dataset)] or sizes[:1]
    for candidates, share in ((sufficient_sizes, 1.0), (sufficient_sizes, 0.3), (sizes, 0.3)):
        for size in candidates:
            if stage.cost(size, share * target_epochs) <= seconds:
                return size
    return sizes[-1]


def _min_size_for_boxes(dataset: DatasetSummary) -> float:
    """Returns the smallest size at which small boxes have enough pixels."""
    return MIN_BOX_PX / max(decile_summary(dataset.box_shares)[0], 1e-3) if dataset.box_shares else 0.0


def _steps(epochs: float, dataset: DatasetSummary, batch_size: int) -> int:
    return math.ceil(epochs * max(1, dataset.train // batch_size))


def _round_epochs(epochs: float) -> float:
    return float(f"{epochs:.2g}") if epochs < 10 else float(round(epochs))


def _train_size(size: int, kind: str) -> int:
    """Returns the crop size: three quarters, which matches the apparent size (Touvron et al., 2019) and is cheaper.

    Detectors train at the full size: a smaller crop never contains an object that fills the image.
    """
    if kind == "boxes" or (kind in SPATIAL_KINDS and size < 256):
        return size
    return max(STEP, round(0.77 * size / STEP) * STEP)


def _learning_rate(stage: _Stage, steps: int) -> float:
    if stage.growth.is_refined:
        return REFINING_RATE
    return 4e-3 if stage.dataset.request.kind == "boxes" and steps < SHORT_STEPS else 2e-3


def _augment(stage: _Stage, steps: int) -> dict[str, Any]:
    like = stage.growth.like
    settings = dict(like.augment) if like else _usual_augment(stage.dataset.request.kind, crop=stage.crop)
    if any(SIDES.search(name) for name in stage.dataset.classes):  # mirroring swaps left and right classes
        settings.pop("flip_probability", None)
    if steps < SHORT_STEPS:
        settings.pop("mosaic_probability", None)
    return settings


def _usual_augment(kind: str, *, crop: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {"scale_min": 0.8, "scale_max": 1.6, "random_position": True, "flip_probability": 0.5}
    if crop:
        settings |= {"scale_min": 1.0, "scale_max": 1.7, "aspect": 1.2}
    if kind != "depth":
        settings |= {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3}
    return settings | ({"mosaic_probability": 0.5} if kind == "boxes" else {})


def _segmentation(dataset: DatasetSummary, size: int) -> dict[str, Any]:
    total = sum(dataset.counts.values()) or 1
    weights = [
        BACKGROUND_WEIGHT if dataset.counts[name] > BACKGROUND_SHARE * total else 1.0 for name in dataset.classes
    ]
    settings = {"loss_stride": 4 if size >= 256 else 2, "dice_weight": 1.0}
    return {**settings, "class_weights": tuple(weights)} if min(weights) < 1 else settings


def strides(dataset: DatasetSummary, size: int) -> tuple[int, ...]:
    """Returns the strides of a detector: a cell detects boxes of about 2 to 12 times its side.

    Args:
        dataset: dataset with boxes.
        size: input size, px.
    """
    if not dataset.box_shares:
        return (8, 16, 32)
    small, _, large = (share * size for share in decile_summary(dataset.box_shares))
    return tuple(stride for stride in (8, 16, 32) if small <= 12 * stride and large >= 2 * stride) or (8,)


def _detection(dataset: DatasetSummary, size: int) -> dict[str, Any]:
    return {"strides": strides(dataset, size)}


def _regression(dataset: DatasetSummary, size: int) -> dict[str, Any]:
    del size
    return {"center": float(f"{dataset.center:.4g}"), "scale": float(f"{dataset.scale:.4g}")}


def _depth(dataset: DatasetSummary, size: int) -> dict[str, Any]:
    del size
    return {"center": float(f"{dataset.center:.3g}"), "max_depth": max(10.0, float(math.ceil(1.5 * dataset.farthest)))}


def _task_settings(dataset: DatasetSummary, size: int) -> dict[str, Any]:
    return _TASKS.get(dataset.request.kind, lambda dataset, size: {})(dataset, size)


_TASKS = {
    "masks": _segmentation,
    "boxes": _detection,
    "values": _regression,
    "depth": _depth,
    "classes": lambda dataset, size: {"label_smoothing": 0.1} if len(dataset.classes) > 2 else {},
}
