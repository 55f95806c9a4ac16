"""The backbone of YOLOv8-n, a small CSPDarknet, with features at strides 8, 16 and 32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models.backbones.backbone import Backbone, Layers
from mtl_jax.models.layers import ConvNorm, Norming

SILU = "silu"
STEM_CHANNELS = 16
# Channels of each stage, which begins with a 3x3 convolution of stride 2, and the number of its bottlenecks.
STAGES = ((32, 1), (64, 2), (128, 2), (256, 1))


def max_pool_5x5(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
    """The largest value of the 5 x 5 cells around each cell.

    Rows first, then columns, as maxima of shifted maps: XLA's CPU backend reduces windows about ten times slower, and
    their gradient too. Where several cells are largest, they share the gradient.

    Args:
        x: Features.

    Returns:
        Features of the same shape; cells outside the map do not count.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        padded = jnp.pad(
            x,
            [(2, 2) if dimension == axis else (0, 0) for dimension in range(4)],
            constant_values=jnp.array(-jnp.inf, x.dtype),
        )
        pairs = jnp.maximum(_slice_of(padded, axis, 0, size + 3), _slice_of(padded, axis, 1, size + 3))
        fours = jnp.maximum(_slice_of(pairs, axis, 0, size), _slice_of(pairs, axis, 2, size))
        x = jnp.maximum(fours, _slice_of(padded, axis, 4, size))
    return x


def _slice_of(x: Array, axis: int, start: int, size: int) -> Array:
    return jax.lax.slice_in_dim(x, start, start + size, axis=axis)


class C2f(nn.Module):
    """A cross-stage partial stage: half of the channels pass bottlenecks, and what each gives is kept.

    References:
        Wang et al., "CSPNet: A New Backbone that can Enhance Learning Capability of CNN", 2020.
        Jocher et al., "Ultralytics YOLOv8", 2023.
    """

    features: int
    bottlenecks: int
    conv_norm: Callable[..., ConvNorm]

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train_batch_norm: Norming
    ) -> Float[Array, "batch height width features"]:
        """Applies the stage; every bottleneck adds its input to its result."""
        half = self.features // 2
        x = self.conv_norm(2 * half, SILU, name="split")(x, train_batch_norm=train_batch_norm)
        features = [x[..., :half], x[..., half:]]
        for number in range(self.bottlenecks):
            x = features[-1]
            for layer in ("first", "second"):
                conv = self.conv_norm(half, SILU, 3, name=f"bottleneck_{number}_{layer}")
                x = conv(x, train_batch_norm=train_batch_norm)
            features.append(features[-1] + x)
        merge = self.conv_norm(self.features, SILU, name="merge")
        return merge(jnp.concatenate(features, axis=-1), train_batch_norm=train_batch_norm)


class Sppf(nn.Module):
    """Adds what is largest within 2, 4 and 6 cells of each cell.

    References:
        He et al., "Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition", 2014.
        Jocher et al., "Ultralytics YOLOv5", 2020 (one pooling after another).
    """

    features: int
    conv_norm: Callable[..., ConvNorm]

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train_batch_norm: Norming
    ) -> Float[Array, "batch height width features"]:
        """Applies the layer."""
        reduce = self.conv_norm(self.features // 2, SILU, name="reduce")
        features = [reduce(x, train_batch_norm=train_batch_norm)]
        for _ in range(3):
            features.append(max_pool_5x5(features[-1]))
        merge = self.conv_norm(self.features, SILU, name="merge")
        return merge(jnp.concatenate(features, axis=-1), train_batch_norm=train_batch_norm)


class YoloV8N(Backbone):
    """Layers 0 to 9 of YOLOv8-n: 64, 128 and 256 channels and 1,272,656 parameters at full width.

    Its parts are stem, down_1, c2f_1 … down_4, c2f_4, sppf. Its one output stride is 32.

    References:
        Redmon, Farhadi, "YOLOv3: An Incremental Improvement", 2018 (Darknet-53).
        Jocher et al., "Ultralytics YOLOv8", 2023.
    """

    batch_norm_momentum: float = 0.97  # Ultralytics' 0.03, counted the other way round

    def layers(self) -> Layers:
        """The layers, in order."""
        self.refuse_dilation("yolov8n")
        layers: Layers = [(2, partial(self.conv_norm, self.width(STEM_CHANNELS), SILU, 3, 2, name="stem"))]
        for number, (channels, bottlenecks) in enumerate(STAGES, start=1):
            width = self.width(channels)
            layers.append((2, partial(self.conv_norm, width, SILU, 3, 2, name=f"down_{number}")))
            layers.append((1, partial(C2f, width, bottlenecks, self.conv_norm, name=f"c2f_{number}")))
        return [*layers, (1, partial(Sppf, self.width(STAGES[-1][0]), self.conv_norm, name="sppf"))]
