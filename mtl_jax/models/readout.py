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
BRANCH_CHANNELS, BRANCH_KERNEL = 32, 3  # of the branch of a detector's later classes
CONTEXT_CHANNELS = 24  # of one that reads the backbone too, whose deepest features have hundreds

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
    """What the head's layers read, from which rows of later classes may read too: {stride in px: features}."""

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
    if not addition.boxes:
        return AddedRows(addition.channels, dtype, name=name)
    kind = ContextBoxes if addition.reads_backbone else AddedBoxes
    return kind(addition.channels, dtype, name=name)


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
    """Rows of a detector's later classes, and a branch that adds to them, and to the boxes of the first classes.

    The branch is zero at first: training starts from the boxes that the first classes have. It is separable, and of few
    channels, so that it costs little compared with the layers that it reads.
    """

    channels: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, features: Levels, first: Levels, sources: Sources, norming: Norming
    ) -> dict[int, Float[Array, "batch height width rows"]]:
        """Returns box, objectness and classes of every cell."""
        rows = readout(self.channels - BOX_CHANNELS, self.dtype, name="rows")
        conv = SeparableConv(BRANCH_CHANNELS, BRANCH_KERNEL, self.dtype, name="conv")
        out = Dense(self.channels, self.dtype, jnp.dtype("float32"), variance=0.0, name="branch")
        raw = {}
        for stride, x in features.items():
            hidden = BatchNorm("relu", name=f"norm_stride_{stride}")(conv(x), by_batch=norming)
            boxes = jax.lax.stop_gradient(first[stride][..., :BOX_CHANNELS])
            raw[stride] = jnp.concatenate([boxes, rows(x)], axis=-1) + out(hidden)
        return raw


class ContextBoxes(nn.Module):
    """The same, with a branch that also reads the neck's levels, and in every cell the backbone's deepest features.

    The head has learnt to see new classes as background, while the deepest features, from ImageNet, distinguish many
    things. All three are brought to few channels by 1x1 convolutions. The finest of several levels, which has most of
    the cells, repeats the output of the branch at the next one. Rows and branch are zero at first.
    """

    channels: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, features: Levels, first: Levels, sources: Sources, norming: Norming
    ) -> dict[int, Float[Array, "batch height width rows"]]:
        """Returns box, objectness and classes of every cell."""
        rows, branch = (self._zero_at_first(name) for name in ("rows", "branch"))
        cells, neck, deepest = (Dense(CONTEXT_CHANNELS, self.dtype, name=name) for name in ("cells", "neck", "context"))
        of_deepest = max(sources.backbone)
        context, below, raw = (of_deepest, deepest(sources.backbone[of_deepest])), None, {}
        for stride in sorted(features, reverse=True):
            if below is None or stride > min(features):
                context = _enlarged(*context, stride)
                hidden = cells(features[stride], residual=neck(sources.neck[stride], residual=context[1]))
                hidden = BatchNorm("relu", name=f"norm_stride_{stride}")(hidden, by_batch=norming)
                below = stride, branch(hidden)
            else:
                below = _enlarged(*below, stride)
            boxes = jax.lax.stop_gradient(first[stride][..., :BOX_CHANNELS])
            boxes = jnp.pad(boxes, ((0, 0),) * 3 + ((0, self.channels - BOX_CHANNELS),))
            raw[stride] = rows(features[stride], residual=below[1] + boxes)
        return raw

    def _zero_at_first(self, name: str) -> Dense:
        return Dense(self.channels, self.dtype, jnp.dtype("float32"), variance=0.0, name=name)


def _enlarged(stride: int, x: Float[Array, "batch _ _ channels"], to: int) -> tuple[int, Array]:
    """Features of a stride repeated to a finer one, which comes with them."""
    while stride > to:
        stride, x = stride // 2, upsample_2x(x)
    return stride, x
