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
from mtl_jax.tasks.base import Task

# 0.01 squared: training starts from near-uniform predictions (Lin et al., "Focal Loss", 2017, section 4.1).
READOUT_VARIANCE = 1e-4
BOX_CHANNELS = 4
HEAD_KERNELS = (3, 5)  # sizes in the narrow head of later boxes and masks, by layer
HEAD_SHARE, RANK_SHARE = 5 / 12, 1 / 12  # its channels, and the rank of its correction, for each channel of the neck

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
        added = ADDED[self.task.readout]
        self.later = [added(rows.channels, self.dtype, name=f"added_{rows.stage}") for rows in self.task.additions]

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


class AddedLabels(nn.Module):
    """Rows of later classes of the whole image: of the head's features, and of the means of the backbone's coarsest.

    Neck and head keep what distinguishes the first classes; the backbone's more channels may distinguish others.
    """

    channels: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, features: Levels, first: Levels, sources: Sources, norming: Norming
    ) -> dict[int, Float[Array, "batch rows"]]:
        """Returns their raw outputs."""
        del first, norming
        rows = readout(self.channels, self.dtype, name="rows")
        backbone = sources.backbone[max(sources.backbone)].mean(axis=(1, 2))
        of_backbone = _zero_at_first(self.channels, self.dtype, name="rows_backbone")(backbone)
        return {stride: rows(x) + of_backbone for stride, x in features.items()}


class NarrowHead(nn.Module):
    """Hidden layers of later classes on levels of the neck, in separable convolutions that the levels share.

    At the coarsest level, where large objects are found, a correction of low rank from the backbone's features is added
    to what it reads; the correction is zero at first.

    References:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2022 (the correction).
    """

    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, sources: Sources, strides: tuple[int, ...], norming: Norming
    ) -> dict[int, Float[Array, "batch _ _ hidden"]]:
        """Returns the last features at each stride, of which the last is the coarsest."""
        features = {stride: sources.neck[stride] for stride in strides}
        features[strides[-1]] = self._corrected(sources, strides[-1])
        width = _in_vectors(HEAD_SHARE * features[strides[0]].shape[-1])
        for number, size in enumerate(HEAD_KERNELS):
            conv = SeparableConv(width, size, self.dtype, name=f"conv_{number}")
            for stride, x in features.items():
                norm = BatchNorm("relu", name=f"norm_{number}_stride_{stride}")
                features[stride] = norm(conv(x), by_batch=norming)
        return features

    def _corrected(self, sources: Sources, stride: int) -> Array:
        """Returns a level of the neck with what the backbone's features of its stride add to it."""
        level = sources.neck[stride]
        if stride not in sources.backbone:
            return level
        low_rank = Dense(_in_vectors(RANK_SHARE * level.shape[-1]), self.dtype, name="down_backbone")
        up = Dense(level.shape[-1], self.dtype, variance=0.0, name="up")
        return up(low_rank(sources.backbone[stride]), residual=level)


class AddedBoxes(nn.Module):
    """Rows of a detector's later classes: of the head of the first classes, and of a narrow head of their own.

    The head of the first classes has learnt to see later ones as background, so that its rows alone learn little. The
    narrow head reads the neck's levels but the finest, which has most of the cells, and for which outputs of the next
    are repeated. All outputs are zero at first: training starts from the first boxes.
    """

    channels: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, features: Levels, first: Levels, sources: Sources, norming: Norming
    ) -> dict[int, Float[Array, "batch height width rows"]]:
        """Returns box, objectness and classes of every cell."""
        finest, *coarser = sorted(features)
        head = NarrowHead(self.dtype)
        nn.share_scope(self, head)
        hidden = head(sources, tuple(coarser) or (finest,), norming)
        rows, out = (_zero_at_first(self.channels, self.dtype, name=name) for name in ("rows", "out"))
        raw = {stride: rows(x, residual=self._boxes(first[stride])) for stride, x in features.items()}
        raw |= {stride: out(x, residual=raw[stride]) for stride, x in hidden.items()}
        if coarser:
            out_finest = _zero_at_first(self.channels, self.dtype, name="out_finest")
            raw[finest] += _enlarged(out_finest(hidden[coarser[0]]), coarser[0] // finest)
        return raw

    def _boxes(self, first: Array) -> Array:
        """Returns the boxes of the first classes as those of this addition, whose other outputs are 0."""
        boxes = jax.lax.stop_gradient(first[..., :BOX_CHANNELS])
        return jnp.pad(boxes, ((0, 0),) * 3 + ((0, self.channels - BOX_CHANNELS),))


class AddedMasks(nn.Module):
    """Rows of a segmenter's later classes: of the head of the first classes, and of a narrow head of their own.

    The narrow head reads the levels of the neck that are coarser than the task's; outputs of each are repeated and
    added to those of the next.
    """

    channels: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, features: Levels, first: Levels, sources: Sources, norming: Norming
    ) -> dict[int, Float[Array, "batch height width rows"]]:
        """Returns their raw outputs."""
        del first
        ((finest, x),) = features.items()
        head, out = NarrowHead(self.dtype), _zero_at_first(self.channels, self.dtype, name="out")
        nn.share_scope(self, head)
        coarser = tuple(stride for stride in sorted(sources.neck) if stride > finest)
        hidden = head(sources, coarser or (finest,), norming)
        *finer, last = hidden
        raw = out(hidden[last])
        for stride in reversed(finer):
            raw, last = out(hidden[stride], residual=_enlarged(raw, last // stride)), stride
        rows = readout(self.channels, self.dtype, name="rows")
        return {finest: rows(x, residual=_enlarged(raw, last // finest))}


ADDED = {"pooled": AddedLabels, "cells": AddedBoxes, "dense": AddedMasks}  # by the readout of the task


def _zero_at_first(channels: int, dtype: jnp.dtype, *, name: str) -> Dense:
    return Dense(channels, dtype, jnp.dtype("float32"), variance=0.0, name=name)


def _in_vectors(channels: float) -> int:
    """The nearest whole number, in eights as compiled kernels take them where there are that many."""
    return 8 * round(channels / 8) if channels >= 8 else max(round(channels), 1)


def _enlarged(x: Float[Array, "batch _ _ channels"], factor: int) -> Float[Array, "batch _ _ channels"]:
    """Features repeated to so many times the height and width, a power of two."""
    return x if factor == 1 else _enlarged(upsample_2x(x), factor // 2)
