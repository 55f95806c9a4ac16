"""Neck: brings backbone features to the levels of one width that the head reads."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models.backbones.backbone import OUTPUT_STRIDES
from mtl_jax.models.layers import ConvNorm, Dense, Norming


@jax.jit  # under a name by which exported files know it: some lack arrays of six axes
def upsample_2x(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch _ _ channels"]:
    """Repeats every cell to 2 x 2 cells.

    Args:
        x: Features.

    Returns:
        Features of twice the height and width.
    """
    batch, height, width, channels = x.shape
    cells = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return cells.reshape(batch, 2 * height, 2 * width, channels)


class Fpn(nn.Module):
    """One feature-pyramid layer: every level is brought to one width, and receives the coarser ones.

    The coarsest level also receives its mean over the whole image, through weights of its own, and hands it down: what
    is in the image helps to name each of its parts. There is no smoothing convolution, as the head's convolutions
    follow at every level.

    References:
        Lin et al., "Feature Pyramid Networks for Object Detection", 2017.
        Liu, Rabinovich, Berg, "ParseNet: Looking Wider to See Better", 2015 (global context).
    """

    channels: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @staticmethod
    def strides(output_stride: int) -> tuple[int, ...]:
        """The strides of the levels in px, for a backbone of this output stride."""
        return tuple(stride for stride in OUTPUT_STRIDES if stride <= output_stride)

    @nn.compact
    def __call__(
        self, features: Mapping[int, Float[Array, "batch _ _ _"]], *, train_batch_norm: Norming
    ) -> dict[int, Float[Array, "batch _ _ channels"]]:
        """Returns {stride: features}; every stride must be twice the next finer one."""
        whole_image = features[max(features)].mean(axis=(1, 2), keepdims=True)
        coarser = Dense(self.channels, self.dtype, name="context")(whole_image, norming=train_batch_norm)
        levels = {}
        for stride in sorted(features, reverse=True):
            lateral = Dense(self.channels, self.dtype, name=f"lateral_{stride}")
            cells = features[stride].shape[:3]
            coarser = upsample_2x(coarser) if levels else jnp.broadcast_to(coarser, (*cells, self.channels))
            coarser = lateral(features[stride], norming=train_batch_norm, residual=coarser)
            levels[stride] = coarser
        return levels


class TwoConv(nn.Module):
    """Two 3x3 convolutions with batch norm and ReLU on the backbone's last features."""

    channels: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @staticmethod
    def strides(output_stride: int) -> tuple[int, ...]:
        """The stride of the one level in px, for a backbone of this output stride."""
        return (output_stride,)

    @nn.compact
    def __call__(
        self, features: Mapping[int, Float[Array, "batch _ _ _"]], *, train_batch_norm: Norming
    ) -> dict[int, Float[Array, "batch _ _ channels"]]:
        """Returns {stride: features} of the coarsest level."""
        stride = max(features)
        x = features[stride]
        for number in range(2):
            conv = ConvNorm(self.channels, "relu", 3, dtype=self.dtype, name=f"conv_{number}")
            x = conv(x, train_batch_norm=train_batch_norm)
        return {stride: x}


NECKS = {"fpn": Fpn, "two_conv": TwoConv}
