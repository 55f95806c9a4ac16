"""A task's slice of the head's last convolution, and the rows of classes that it got later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models.layers import BatchNorm, Dense, Norming, SeparableConv
from mtl_jax.models.neck import upsample_2x
from mtl_jax.tasks.base import Added, Task

# 0.01 squared: training starts from near-uniform predictions (Lin et al., "Focal Loss", 2017, section 4.1).
READOUT_VARIANCE = 1e-4
BOX_CHANNELS = 4
# Sizes of the kernels of a detector's later classes, by layer: at the second finest level, and at the finest.
HEAD_KERNELS, FINEST_KERNELS = {"0": 3, "1": 5}, {"finest": 5}
# For each channel of the neck: its channels, those at the finest level, and the rank of what the backbone adds.
HEAD_SHARE, FINEST_SHARE, RANK_SHARE = 5 / 12, 1 / 6, 1 / 12

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
    """Rows of a detector's later classes, which are a narrow head of their own that adds to the first boxes.

    The head of the first classes has learnt to see later ones as background. So the narrow head reads the neck: its
    second finest level, with a correction of low rank from the backbone's features there. In fewer channels it reads
    the finest level, which has most of the cells: the backbone's features, and its own of the next level. Means of
    outputs of the second finest level are those of coarser ones. The correction and the outputs are zero at first:
    training starts from the first boxes.

    References:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2022 (what is added to the neck).
    """

    channels: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, features: Levels, first: Levels, sources: Sources, norming: Norming
    ) -> dict[int, Float[Array, "batch height width rows"]]:
        """Returns box, objectness and classes of every cell."""
        finest, *coarser = sorted(features)
        levels = tuple(coarser) or (finest,)
        hidden = self._corrected(sources, levels[0])
        hidden = self._layers(hidden, _in_vectors(HEAD_SHARE * hidden.shape[-1]), HEAD_KERNELS, norming)
        outputs = self._zero_at_first("out", self.channels * len(levels))(hidden)
        raw = {}
        for number, stride in enumerate(levels):
            added = outputs[..., number * self.channels : (number + 1) * self.channels]
            raw[stride] = _reduced(added, stride // levels[0]) + self._boxes(first[stride])
        if coarser:
            x = self._finest(sources, finest, hidden, levels[0] // finest)
            x = self._layers(x, x.shape[-1], FINEST_KERNELS, norming)
            raw[finest] = self._zero_at_first("out_finest", self.channels)(x, residual=self._boxes(first[finest]))
        return raw

    def _zero_at_first(self, name: str, channels: int) -> Dense:
        return Dense(channels, self.dtype, jnp.dtype("float32"), variance=0.0, name=name)

    def _boxes(self, first: Array) -> Array:
        """Returns the boxes of the first classes as those of this addition, whose other outputs are 0."""
        boxes = jax.lax.stop_gradient(first[..., :BOX_CHANNELS])
        return jnp.pad(boxes, ((0, 0),) * 3 + ((0, self.channels - BOX_CHANNELS),))

    def _corrected(self, sources: Sources, stride: int) -> Array:
        """Returns a level of the neck with what the backbone's features of its stride add to it."""
        level = sources.neck[stride]
        if stride not in sources.backbone:
            return level
        low_rank = Dense(_in_vectors(RANK_SHARE * level.shape[-1]), self.dtype, name="down_backbone")
        up = Dense(level.shape[-1], self.dtype, variance=0.0, name="up")
        return up(low_rank(sources.backbone[stride]), residual=level)

    def _finest(self, sources: Sources, stride: int, hidden: Array, factor: int) -> Array:
        """Returns few channels of the finest level: of the backbone's features, and of the head's own of the next one.

        The neck's finest level is more of the same, a linear map of these features and of its next level.
        """
        width = _in_vectors(FINEST_SHARE * sources.neck[stride].shape[-1])
        context = _enlarged(Dense(width, self.dtype, name="down_hidden")(hidden), factor)
        finest = sources.backbone.get(stride, sources.neck[stride])
        return Dense(width, self.dtype, name="down_finest")(finest, residual=context)

    def _layers(self, x: Array, width: int, kernels: Mapping[str, int], norming: Norming) -> Array:
        for name, size in kernels.items():
            conv = SeparableConv(width, size, self.dtype, name=f"conv_{name}")
            x = BatchNorm("relu", name=f"norm_{name}")(conv(x), by_batch=norming)
        return x


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
    rows = x.reshape(batch, height // 2, 2, width, channels)
    columns = (rows[:, :, 0] + rows[:, :, 1]).reshape(batch, height // 2, width // 2, 2, channels)
    return _reduced(0.25 * (columns[:, :, :, 0] + columns[:, :, :, 1]), factor // 2)
