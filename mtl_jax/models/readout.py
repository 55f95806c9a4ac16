"""A task's slice of the head's last convolution, and the rows of classes that it got later."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models.layers import BatchNorm, Dense, Norming, SeparableConv
from mtl_jax.tasks.base import Added, Task

# 0.01 squared: training starts from near-uniform predictions (Lin et al., "Focal Loss", 2017, section 4.1).
READOUT_VARIANCE = 1e-4
BOX_CHANNELS = 4
BRANCH_CHANNELS, BRANCH_KERNEL = 32, 3  # of the branch of a detector's later classes: a fiftieth of what the task costs


def readout(channels: int, dtype: jnp.dtype, *, name: str | None = None) -> Dense:
    """Returns the layer, whose outputs are float32 whatever the network computes in: boxes need more than 8 bits.

    Args:
        channels: of the outputs.
        dtype: to compute in.
        name: of the layer.
    """
    return Dense(channels, dtype, jnp.dtype("float32"), READOUT_VARIANCE, name=name)


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
        self, features: Mapping[int, Float[Array, "batch ... channels"]], *, norming: Norming
    ) -> dict[int, Float[Array, "batch ... rows"]]:
        """Returns {stride in px: raw outputs, those of the first classes before those of each addition}."""
        raw = {}
        for stride in self.task.levels:
            first = self.first(features[stride])
            added_rows = [rows(features[stride], first, stride, norming) for rows in self.later]
            raw[stride] = jnp.concatenate([first, *added_rows], axis=-1)
        return raw


def _rows(addition: Added, dtype: jnp.dtype, *, name: str) -> nn.Module:
    return (
        AddedBoxes(addition.channels, dtype, name=name)
        if addition.boxes
        else AddedRows(addition.channels, dtype, name=name)
    )


class AddedRows(nn.Module):
    """Rows of later classes."""

    channels: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch ... channels"], first: Array, stride: int, norming: Norming
    ) -> Float[Array, "batch ... rows"]:
        """Returns their raw outputs."""
        del first, stride, norming
        return readout(self.channels, self.dtype, name="rows")(x)


class AddedBoxes(nn.Module):
    """Rows of a detector's later classes, and a branch that adds to them, and to the boxes of the first classes.

    The branch is zero at first: training starts from the boxes that the first classes have. It is separable, and of few
    channels, so that it costs little compared with the layers that it reads.
    """

    channels: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        first: Float[Array, "batch height width rows_of_first"],
        stride: int,
        norming: Norming,
    ) -> Float[Array, "batch height width rows"]:
        """Returns box, objectness and classes of every cell."""
        rows = readout(self.channels - BOX_CHANNELS, self.dtype, name="rows")(x)
        hidden = SeparableConv(BRANCH_CHANNELS, BRANCH_KERNEL, self.dtype, name="conv")(x)
        hidden = BatchNorm("relu", name=f"norm_stride_{stride}")(hidden, by_batch=norming)
        start = jnp.concatenate([jax.lax.stop_gradient(first[..., :BOX_CHANNELS]), rows], axis=-1)
        out = Dense(self.channels, self.dtype, jnp.dtype("float32"), variance=0.0, name="branch")
        return start + out(hidden)
