"""MobileNetV3-Small, layer for layer as torchvision builds it, with features at strides 8, 16 and 32."""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models.layers import ConvNorm, Dense, Norming, make_divisible

OUTPUT_STRIDES = (8, 16, 32)  # px of input per cell of the last features
FIRST_TAP_STRIDE = 8  # px; finer features are too shallow to be read from
BATCH_NORM_EPSILON = 1e-3  # torchvision's, with which the published weights were trained
BATCH_NORM_MOMENTUM = 0.99  # torchvision's 0.01, counted the other way round
STEM_CHANNELS = 16
LAST_EXPANSION = 6  # channels of the last 1x1 convolution per channel of the last block
CLASSIFIER_CHANNELS = 1024


class Block(NamedTuple):
    """One row of the layer table."""

    kernel_size: int
    expanded: int  # channels of the depthwise convolution
    features: int  # channels of the output
    squeeze_excite: bool
    activation: str
    stride: int
    dilation: int = 1


RE, HS = "relu", "hard_swish"
# Howard et al., "Searching for MobileNetV3", 2019, table 2.
BLOCKS = (
    Block(3, 16, 16, True, RE, 2),
    Block(3, 72, 24, False, RE, 2),
    Block(3, 88, 24, False, RE, 1),
    Block(5, 96, 40, True, HS, 2),
    Block(5, 240, 40, True, HS, 1),
    Block(5, 240, 40, True, HS, 1),
    Block(5, 120, 48, True, HS, 1),
    Block(5, 144, 48, True, HS, 1),
    Block(5, 288, 96, True, HS, 2),
    Block(5, 576, 96, True, HS, 1),
    Block(5, 576, 96, True, HS, 1),
)


def layer_table(*, width_multiplier: float = 1.0, output_stride: int = 32) -> tuple[Block, ...]:
    """The blocks as built: channels scaled, strides beyond `output_stride` turned into dilation.

    A block that would pass `output_stride` keeps its resolution and, like those after it, dilates its kernel
    instead, which is how torchvision makes backbones for segmentation.

    Args:
        width_multiplier: Factor on every number of channels, which are then rounded to multiples of 8.
        output_stride: Stride of the last features in px: 8, 16 or 32.

    Returns:
        One row per block.

    References:
        Howard et al., "Searching for MobileNetV3", 2019.
        Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017.
    """
    rows, stride, dilation = [], 2, 1
    for block in BLOCKS:
        step = block.stride
        if stride * step > output_stride:
            dilation, step = dilation * step, 1
        stride *= step
        rows.append(
            block._replace(
                expanded=make_divisible(block.expanded * width_multiplier),
                features=make_divisible(block.features * width_multiplier),
                stride=step,
                dilation=dilation,
            )
        )
    return tuple(rows)


class SqueezeExcite(nn.Module):
    """Weighs every channel by what the whole map holds.

    References:
        Hu et al., "Squeeze-and-Excitation Networks", 2018.
    """

    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        """Returns `x` times its channel weights, which lie in 0..1."""
        channels = x.shape[-1]
        pooled = jnp.mean(x, axis=(1, 2), keepdims=True)
        hidden = Dense(make_divisible(channels // 4), self.dtype, name="reduce")(pooled)
        weights = Dense(channels, self.dtype, name="expand")(jax.nn.relu(hidden))
        return x * jax.nn.hard_sigmoid(weights)


class InvertedResidual(nn.Module):
    """Expands the channels, convolves each by itself, weighs them, and projects them down again."""

    block: Block
    dtype: jnp.dtype = jnp.dtype("float32")
    batch_norm_momentum: float = BATCH_NORM_MOMENTUM

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train_batch_norm: Norming
    ) -> Float[Array, "batch out_height out_width features"]:
        """Applies the block; where the shape stays, the input is added to the result."""
        block, inputs = self.block, x
        conv_norm = functools.partial(
            ConvNorm, epsilon=BATCH_NORM_EPSILON, momentum=self.batch_norm_momentum, dtype=self.dtype
        )
        if block.expanded != inputs.shape[-1]:
            expand = conv_norm(block.expanded, block.activation, name="expand")
            x = expand(x, train_batch_norm=train_batch_norm)
        depthwise = conv_norm(None, block.activation, block.kernel_size, block.stride, block.dilation, name="depthwise")
        x = depthwise(x, train_batch_norm=train_batch_norm)
        if block.squeeze_excite:
            x = SqueezeExcite(self.dtype, name="squeeze_excite")(x)
        x = conv_norm(block.features, "identity", name="project")(x, train_batch_norm=train_batch_norm)
        return x + inputs if x.shape == inputs.shape else x


class MobileNetV3Small(nn.Module):
    """The convolutional part of the network, or some of its stages; its parts are stem, block_1 … block_11, last."""

    width_multiplier: float = 1.0
    output_stride: int = 32
    dtype: jnp.dtype = jnp.dtype("float32")
    batch_norm_momentum: float = BATCH_NORM_MOMENTUM
    after: int = 1  # px; stages up to this stride are left out, and the input is what they would give
    until: int = 32  # px; stages beyond this stride are left out

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch height width channels"], *, train_batch_norm: Norming
    ) -> dict[int, Float[Array, "batch _ _ _"]]:
        """Returns the deepest features of each stride from 8 px on, up to `output_stride` or `until`.

        Args:
            image: RGB, normalised with ImageNet's mean and standard deviation; or the features of stride `after`.
            train_batch_norm: Where to normalise by the batch and update the running statistics.

        Returns:
            {stride in px: features}; at full width and output stride 32: 24, 48 and 576 channels.
        """
        conv_norm = functools.partial(
            ConvNorm, epsilon=BATCH_NORM_EPSILON, momentum=self.batch_norm_momentum, dtype=self.dtype
        )
        x, stride, taps = image, 2, {}
        if self.after < stride:
            stem = conv_norm(make_divisible(STEM_CHANNELS * self.width_multiplier), HS, 3, 2, name="stem")
            x = stem(x, train_batch_norm=train_batch_norm)
        table = layer_table(width_multiplier=self.width_multiplier, output_stride=self.output_stride)
        for number, block in enumerate(table, start=1):
            if stride * block.stride > self.until:
                return taps | {stride: x}
            if stride * block.stride > self.after:
                if block.stride > 1 and stride >= FIRST_TAP_STRIDE:
                    taps[stride] = x
                x = InvertedResidual(block, self.dtype, self.batch_norm_momentum, name=f"block_{number}")(
                    x, train_batch_norm=train_batch_norm
                )
            stride *= block.stride
        last = conv_norm(LAST_EXPANSION * x.shape[-1], HS, name="last")
        return taps | {stride: last(x, train_batch_norm=train_batch_norm)}


class MobileNetV3SmallClassifier(nn.Module):
    """The whole published network: features, mean over the image, and two dense layers."""

    classes: int = 1000
    width_multiplier: float = 1.0
    dropout_rate: float = 0.2  # torchvision's
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, image: Float[Array, "batch height width 3"], *, train: bool) -> Float[Array, "batch classes"]:
        """Returns logits; `train` turns dropout and the batch's own statistics on."""
        features = MobileNetV3Small(self.width_multiplier, dtype=self.dtype, name="features")
        x = jnp.mean(features(image, train_batch_norm=train)[32], axis=(1, 2))
        hidden = make_divisible(CLASSIFIER_CHANNELS * self.width_multiplier)
        x = jax.nn.hard_swish(Dense(hidden, self.dtype, name="hidden")(x))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return Dense(self.classes, self.dtype, jnp.dtype("float32"), name="logits")(x)
