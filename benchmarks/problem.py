"""What both sides of a comparison compute: the flagship's tasks on images and labels drawn from a seed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

SEG_CLASSES, DET_CLASSES, CLS_CLASSES = 21, 10, 10
LOSS_STRIDE = 4  # px between the pixels that segmentation's loss compares
CLIP_NORM, LEARNING_RATE, WEIGHT_DECAY = 10.0, 1e-3, 1e-4


@dataclasses.dataclass(frozen=True)
class Problem:
    """One measurement of one side."""

    side: str  # "jax", "torch" or "torch_compile"
    what: str  # "step" or "infer"
    batch_size: int = 8
    image_size: int = 512  # px
    dtype: str = "float32"
    balance: str = "sum"
    gradient_space: str = "params"  # of the balancing
    disjoint: bool = False  # one stream for each task, each of `batch_size` images, instead of one with all labels
    classifiers: int = 0  # so many classification tasks instead of the flagship's three
    backbone: str = "mobilenet_v3_small"
    depthwise: str = ""  # a form of `models.depthwise.FORMS`; "" is what the platform takes
    memory_kept: bool | None = None  # by the allocator's settings of the library's programs; None: on the side "jax"
    seed: int = 0

    @property
    def keeps_memory(self) -> bool:
        """Whether the side runs with the allocator's settings of the library's programs."""
        return self.side == "jax" if self.memory_kept is None else self.memory_kept


def task_settings(problem: Problem) -> dict[str, dict[str, Any]]:
    """Returns the configuration of the tasks."""
    if problem.classifiers:
        kind = {"kind": "classification", "classes": _names(CLS_CLASSES)}
        return {f"cls_{number}": dict(kind) for number in range(problem.classifiers)}
    return {
        "seg": {"kind": "segmentation", "classes": _names(SEG_CLASSES), "loss_stride": LOSS_STRIDE},
        "det": {"kind": "detection", "classes": _names(DET_CLASSES)},
        "cls": {"kind": "classification", "classes": _names(CLS_CLASSES)},
    }


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"class_{number}" for number in range(count))


def images(problem: Problem) -> np.ndarray:
    """Returns f32[batch, size, size, 3] in 0..1: blocks of colour with noise."""
    generator = np.random.default_rng(problem.seed)
    count, size = problem.batch_size, problem.image_size
    colours = generator.uniform(0, 1, (count, size // 32, size // 32, 3)).repeat(32, axis=1).repeat(32, axis=2)
    return np.clip(colours + generator.normal(0, 0.1, colours.shape), 0, 1).astype(np.float32)


def labels(problem: Problem) -> dict[str, dict[str, np.ndarray]]:
    """Returns the labels of every task, as the library's batches hold them."""
    generator = np.random.default_rng(problem.seed + 1)
    count, size = problem.batch_size, problem.image_size
    mask = generator.integers(0, SEG_CLASSES, (count, size // 32, size // 32)).repeat(32, axis=1).repeat(32, axis=2)
    mask[generator.uniform(size=mask.shape) < 0.02] = 255
    rows = 64
    valid = np.arange(rows)[None, :] < generator.integers(1, 9, (count, 1))
    corner = generator.uniform(0, 0.6 * size, (count, rows, 2))
    boxes = np.concatenate([corner, corner + generator.uniform(0.08 * size, 0.4 * size, corner.shape)], axis=-1)
    by_task = {
        "seg": {"mask": mask.astype(np.int32)},
        "det": {
            "boxes_xyxy": np.where(valid[..., None], boxes, 0).astype(np.float32),
            "label": generator.integers(0, DET_CLASSES, (count, rows)).astype(np.int32),
            "valid": valid,
        },
        "cls": {"label": generator.integers(0, CLS_CLASSES, count).astype(np.int32)},
    }
    return {name: by_task.get(name, by_task["cls"]) for name in task_settings(problem)}
