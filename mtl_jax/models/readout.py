"""A task's slice of the head's last convolution, and the rows of classes that it got later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mtl_jax.models.layers import BatchNorm, Dense, Norming, SeparableConv
from mtl_jax.models.neck import upsample_2x
from mtl_jax.tasks.base import Added, Task

# 0.01 squared: training starts from near-uniform predictions (Lin et al., "Focal Loss", 2017, section 4.1).
READOUT_VARIANCE = 1e-4
BOX_CHANNELS = 4
HEAD_LAYERS, HEAD_KERNEL = 2, 5  # hidden layers of the head of a detector's later classes
# For each channel of the neck: their channels, and the rank of what a level of the backbone adds to it.
HEAD_SHARE, RANK_SHARE = 5 / 12, 1 / 12

Levels = Mapping[int, Float[Array, "batch ..."]]  # by stride in px


def readout(channels: int, dtype: jnp.dtype, *, name: str | None = None) -> Dense:
    """Returns the layer, whose outputs are float32 whatever the network computes in: boxes need more than 8 bits.

    Args:
        channels: of the outputs.
        dtype: to compute in.
        name: of the layer.
    """
    return Dense(channels, dtype, jnp.dtype("float32"), READOUT_VARIANCE, name=name)


class Sources(NamedTuple):
    """What the head of later classes reads, as the first classes' head and neck do: {stride in px: features}."""

    neck: Mapping[int, Float[Array, "batch _ _ _"]]
    backbone: Mapping[int, Float[Array, "batch _ _ _"]]


class GrownReadout(nn.Module):
    """The readout of the first classes, where it would lie without others, and below it the rows of each addition.

    What is added reads the features and boxes of the first classes, and these read nothing of it.
    """

    task: Task
    dtype: jnp.dtype = jnp.dtype("float32")

    def setup(self) -> None:
        """Makes the layers."""
        self.first = readout(self.task.channels, self.dtype)
        nn.share_scope(self, self.first)
        self.later = [_rows(addition, self.dtype, name=f"added_{addition.stage}") for addition in self.task.additions]

    def __call__(
        self, features: Mapping[int, Float[Array, "batch ... channels"]], sources: Sources, *, norming: Norming
    ) -> dict[int, Float[Array, "batch ... rows"]]:
        """Returns {stride in px: raw outputs, those of the first classes before those of each addition}."""
        features = {stride: features[stride] for stride in self.task.levels}
        first = {stride: self.first(x) for stride, x in features.items()}
        added_rows = [rows(features, first, sources, norming) for rows in self.later]
        return {
            stride: jnp.concatenate([raw, *(rows[stride] for rows in added_rows)], axis=-1)
            for stride, raw in first.items()
        }


def _rows(addition: Added, dtype: jnp.dtype, *, name: str) -> nn.Module:
    return (AddedBoxes if addition.boxes else AddedRows)(addition.channels, dtype, name=name)


class AddedRows(nn.Module):
    """Rows of later classes."""

    channels: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, features: Levels, first: Levels, sources: Sources, norming: Norming
    ) -> dict[int, Float[Array, "batch ... rows"]]:
        """Returns their raw outputs."""
        del first, sources, norming
        rows = readout(self.channels, self.dtype, name="rows")
        return {stride: rows(x) for stride, x in features.items()}


class AddedBoxes(nn.Module):
    """Rows of a detector's later classes, and a narrow head of their own that adds to them and to the first boxes.

    Neck and head of the first classes have learnt to see later ones as background. So the narrow head reads the neck
    with a correction of low rank from the backbone's features, which distinguish many things. Of several levels it
    computes the second finest alone: each of its cells gives four outputs of the finest level, which has most of the
    cells, and means of its outputs are those of coarser ones. Rows, correction and the head's outputs are zero first:
    training starts from the boxes that the first classes have.

    References:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2022 (what is added to the neck).
        Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural
        Network", 2016 (outputs of several cells from one).
    """

    channels: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, features: Levels, first: Levels, sources: Sources, norming: Norming
    ) -> dict[int, Float[Array, "batch height width rows"]]:
        """Returns box, objectness and classes of every cell."""
        rows, added = self._zero_at_first("rows", self.channels), self._added(features, sources, norming)
        raw = {}
        for stride, x in added.items():
            boxes = jax.lax.stop_gradient(first[stride][..., :BOX_CHANNELS])
            boxes = jnp.pad(boxes, ((0, 0),) * 3 + ((0, self.channels - BOX_CHANNELS),))
            raw[stride] = rows(features[stride], residual=x + boxes)
        return raw

    def _added(self, features: Levels, sources: Sources, norming: Norming) -> dict[int, Array]:
        finest, *coarser = sorted(features)
        levels = coarser or [finest]
        hidden = self._corrected(sources, levels[0])
        width = _in_vectors(HEAD_SHARE * hidden.shape[-1])
        for number in range(HEAD_LAYERS):
            conv = SeparableConv(width, HEAD_KERNEL, self.dtype, name=f"conv_{number}")
            hidden = BatchNorm("relu", name=f"norm_{number}")(conv(hidden), by_batch=norming)
        quarters = 4 if coarser else 0  # of a cell, which are cells of the finest level
        outputs = self._zero_at_first("out", self.channels * (len(levels) + quarters))(hidden)
        ends = self.channels * np.arange(1, len(levels) + 1)
        *parts, rest = jnp.split(outputs, ends, axis=-1)
        added = {level: _reduced(part, level // levels[0]) for level, part in zip(levels, parts, strict=True)}
        if coarser:
            added[finest] = _enlarged(in_quarters(rest), levels[0] // (2 * finest))
        return added

    def _zero_at_first(self, name: str, channels: int) -> Dense:
        return Dense(channels, self.dtype, jnp.dtype("float32"), variance=0.0, name=name)

    def _corrected(self, sources: Sources, stride: int) -> Array:
        """Returns a level of the neck with what the backbone's features of its stride and coarser ones add to it."""
        level = sources.neck[stride]
        rank = _in_vectors(RANK_SHARE * level.shape[-1])
        low_rank = [
            _enlarged(Dense(rank, self.dtype, name=f"down_{source}")(x), source // stride)
            for source, x in sorted(sources.backbone.items())
            if source >= stride
        ]
        if not low_rank:
            return level
        up = Dense(level.shape[-1], self.dtype, variance=0.0, name="up")
        return up(jnp.concatenate(low_rank, axis=-1), residual=level)


def _in_vectors(channels: float) -> int:
    """The nearest whole number, in eights as compiled kernels take them where there are that many."""
    return 8 * round(channels / 8) if channels >= 8 else max(round(channels), 1)


def _enlarged(x: Float[Array, "batch _ _ channels"], factor: int) -> Float[Array, "batch _ _ channels"]:
    """Features repeated to so many times the height and width, a power of two."""
    return x if factor == 1 else _enlarged(upsample_2x(x), factor // 2)


def _reduced(x: Float[Array, "batch _ _ channels"], factor: int) -> Float[Array, "batch _ _ channels"]:
    """Means of 2 x 2 cells, until height and width are so many times smaller: a power of two."""
    if factor == 1:
        return x
    batch, height, width, channels = x.shape
    pairs = x.reshape(batch, height // 2, 2, width, channels).mean(axis=2)
    return _reduced(pairs.reshape(batch, height // 2, width // 2, 2, channels).mean(axis=3), factor // 2)


def in_quarters(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch _ _ quarter"]:
    """Returns a map of twice the height and width, whose 2 x 2 cells are the quarters of the channels of one."""
    batch, height, width, channels = (*x.shape[:3], x.shape[3] // 4)
    quarters = (x[..., number * channels : (number + 1) * channels] for number in range(4))
    upper_left, upper_right, lower_left, lower_right = quarters
    upper = jnp.stack([upper_left, upper_right], axis=3).reshape(batch, height, 2 * width, channels)
    lower = jnp.stack([lower_left, lower_right], axis=3).reshape(batch, height, 2 * width, channels)
    return jnp.stack([upper, lower], axis=2).reshape(batch, 2 * height, 2 * width, channels)
