"""A backbone of three convolutions that compiles in a second, for tests of everything around the network."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import config as config_lib
from mtl_jax import experiment
from mtl_jax.models import multi_task
from mtl_jax.models.layers import BatchNorm, ByBatch
from mtl_jax.workdir import checkpoints


class TinyBackbone(nn.Module):
    """Takes MobileNetV3Small's place: the same fields, the same strides."""

    width_multiplier: float = 1.0
    output_stride: int = 32
    dtype: jnp.dtype = jnp.dtype("float32")
    batch_norm_momentum: float = 0.9
    after: int = 1
    until: int = 32

    @nn.compact
    def __call__(self, image, *, train_batch_norm: ByBatch):
        features, taps = image, {self.after: image} if self.after >= 8 else {}
        for stride, step, channels in ((8, 8, 16), (16, 2, 24), (32, 2, 24)):
            if not self.after < stride <= self.until:
                continue
            features = nn.Conv(channels, (step, step), (step, step), use_bias=False, name=f"conv_{stride}")(features)
            norm = BatchNorm("relu", momentum=self.batch_norm_momentum, name=f"norm_{stride}")
            features = norm(features, by_batch=train_batch_norm)
            taps[stride] = features
        return taps


MODEL = {"backbone": "tiny", "neck_channels": 16, "head_channels": 16, "head_layers": 2}

# One task of every kind, in one network.
KINDS = {
    "seg": {"kind": "segmentation", "classes": ("background", "cat", "dog")},
    "det": {"kind": "detection", "classes": ("cup", "ball"), "strides": (8, 16), "candidates": 16, "max_detections": 8},
    "cls": {"kind": "classification", "classes": ("indoors", "outdoors")},
    "tags": {"kind": "multi_label", "classes": ("sun", "rain")},
    "age": {"kind": "regression", "center": 30.0, "unit": "years"},
    "depth": {"kind": "depth"},
}


def random_variables(model: Any, *, seed: int = 0) -> Any:
    """Variables of the shapes and about the sizes of fresh ones, none of them zero all through; compiles nothing."""
    generator = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: multi_task.init_variables(model, key=key), jax.random.key(0))

    def fill(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        name, noise = path[-1].key, generator.normal(size=leaf.shape)
        if name in ("scale", "var"):
            values = 1.0 + 0.1 * np.abs(noise)
        else:
            values = noise / math.sqrt(math.prod(leaf.shape[:-1]) or 1) if name == "kernel" else 0.1 * noise
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def spare_report(patch: pytest.MonkeyPatch) -> None:
    """Leaves out what a run does at its end beside judging: seconds of timing, counting and drawing."""
    from mtl_jax.training import measurement, train_loop

    patch.setattr(train_loop.evaluate, "latency_ms", lambda *arguments, **settings: 1.0)
    patch.setattr(train_loop.evaluate, "gigaflops", lambda *arguments, **settings: 1.0)
    patch.setattr(measurement.pictures, "look", lambda *arguments, **settings: {})
    patch.setattr(train_loop.run_report, "write", lambda *arguments, **settings: None)


def save_checkpoint(folder: Path, *, image_size: int = 64, later: Iterable[str] = ()) -> Path:
    """Writes the checkpoint of an untrained network with every kind of task; `cls` sees smaller images, cropped.

    The last class of tasks in `later` is one that they got later.
    """
    config: Any = config_lib.base()
    config.image_size = image_size
    with config.ignore_type():
        config.model.update(MODEL)
        config.tasks.update(KINDS)
        for name in later:
            config.tasks[name]["added"] = (("all", 1),)
    for name, size in (("scenes", 0), ("single", image_size // 2)):
        labels = {"cls": "classification"} if size else {task: task for task in KINDS if task != "cls"}
        config.streams[name] = config_lib.stream("digits", labels, image_size=size, crop=bool(size))
    return _save_untrained(folder, config, KINDS)


def save_checkpoint_of_scenes(folder: Path, *, count: int = 6) -> Path:
    """Writes the checkpoint of an untrained network with masks and boxes of two embedded digits, to be measured."""
    config: Any = config_lib.base()
    config.image_size, digits = 64, ("3", "7")
    with config.ignore_type():
        config.model.update(MODEL)
        config.tasks.seg = {"kind": "segmentation", "classes": ("background", *digits)}
        config.tasks.det = {**KINDS["det"], "classes": digits}
    labels = {"seg": "segmentation", "det": "detection"}
    options = {"labels": tuple(labels.values()), "digits": digits, "length": count}
    config.streams.scenes = config_lib.stream("digits", labels, options=options)
    return _save_untrained(folder, config, labels)


def _save_untrained(folder: Path, config: Any, names: Iterable[str]) -> Path:
    setup = experiment.build(config.to_dict(), data_root=Path())
    stages = [{"name": "all", "metrics": {task: {} for task in names}}]
    metadata = {"stage": "all", "stages": stages, "config": config.to_dict()}
    checkpoints.save(folder, {"variables": random_variables(setup.model)}, metadata)
    return folder
