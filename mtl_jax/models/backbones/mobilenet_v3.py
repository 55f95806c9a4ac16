"""MobileNetV3, small and large, layer for layer as torchvision builds it, with features at strides 8, 16 and 32."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models.backbones.inverted_residual import Block, InvertedResidualBackbone, dilated
from mtl_jax.models.layers import Dense, make_divisible

BATCH_NORM_MOMENTUM = 0.99  # torchvision's 0.01, counted the other way round
STEM_CHANNELS = 16


class Row(NamedTuple):
    """One row of the layer table."""

    kernel_size: int
    expanded: int  # channels of the depthwise convolution
    features: int  # channels of the output
    squeeze_excite: bool
    activation: str
    stride: int


RE, HS = "relu", "hard_swish"
# Howard et al., "Searching for MobileNetV3", 2019, table 2.
SMALL = (
    Row(3, 16, 16, True, RE, 2),
    Row(3, 72, 24, False, RE, 2),
    Row(3, 88, 24, False, RE, 1),
    Row(5, 96, 40, True, HS, 2),
    Row(5, 240, 40, True, HS, 1),
    Row(5, 240, 40, True, HS, 1),
    Row(5, 120, 48, True, HS, 1),
    Row(5, 144, 48, True, HS, 1),
    Row(5, 288, 96, True, HS, 2),
    Row(5, 576, 96, True, HS, 1),
    Row(5, 576, 96, True, HS, 1),
)
# Table 1 there.
LARGE = (
    Row(3, 16, 16, False, RE, 1),
    Row(3, 64, 24, False, RE, 2),
    Row(3, 72, 24, False, RE, 1),
    Row(5, 72, 40, True, RE, 2),
    Row(5, 120, 40, True, RE, 1),
    Row(5, 120, 40, True, RE, 1),
    Row(3, 240, 80, False, HS, 2),
    Row(3, 200, 80, False, HS, 1),
    Row(3, 184, 80, False, HS, 1),
    Row(3, 184, 80, False, HS, 1),
    Row(3, 480, 112, True, HS, 1),
    Row(3, 672, 112, True, HS, 1),
    Row(5, 672, 160, True, HS, 2),
    Row(5, 960, 160, True, HS, 1),
    Row(5, 960, 160, True, HS, 1),
)


def layer_table(
    rows: tuple[Row, ...] = SMALL, *, width_multiplier: float = 1.0, output_stride: int = 32
) -> tuple[Block, ...]:
    """The blocks as built: channels scaled, strides beyond `output_stride` turned into dilation.

    Args:
        rows: The table of a size.
        width_multiplier: Factor on every number of channels, which are then rounded to multiples of 8.
        output_stride: Stride of the last features in px: 8, 16 or 32.

    Returns:
        One block per row.

    References:
        Howard et al., "Searching for MobileNetV3", 2019.
    """
    blocks = []
    for row in rows:
        expanded = make_divisible(row.expanded * width_multiplier)
        features = make_divisible(row.features * width_multiplier)
        squeezed = make_divisible(expanded // 4) if row.squeeze_excite else 0
        blocks.append(Block(row.kernel_size, expanded, features, squeezed, row.activation, row.stride))
    return dilated(blocks, output_stride=output_stride)


class MobileNetV3(InvertedResidualBackbone):
    """The convolutional part of the network, of one of its sizes, or some of its stages."""

    batch_norm_momentum: float = BATCH_NORM_MOMENTUM

    rows: ClassVar[tuple[Row, ...]]
    activation = HS
    stem_channels = STEM_CHANNELS
    last_expansion = 6

    def blocks(self) -> tuple[Block, ...]:
        """The blocks at this width and output stride."""
        return layer_table(self.rows, width_multiplier=self.width_multiplier, output_stride=self.output_stride)


class MobileNetV3Small(MobileNetV3):
    """MobileNetV3-Small: 11 blocks; 24, 48 and 576 channels at full width."""

    rows = SMALL


class MobileNetV3Large(MobileNetV3):
    """MobileNetV3-Large: 15 blocks; 40, 112 and 960 channels at full width."""

    rows = LARGE


class MobileNetV3Classifier(nn.Module):
    """The whole published network: features, mean over the image, and two dense layers."""

    classes: int = 1000
    width_multiplier: float = 1.0
    dropout_rate: float = 0.2  # torchvision's
    dtype: jnp.dtype = jnp.dtype("float32")

    backbone: ClassVar[type[MobileNetV3]]
    hidden_channels: ClassVar[int]

    @nn.compact
    def __call__(self, image: Float[Array, "batch height width 3"], *, train: bool) -> Float[Array, "batch classes"]:
        """Returns logits; `train` turns dropout and the batch's own statistics on."""
        features = self.backbone(self.width_multiplier, dtype=self.dtype, name="features")
        x = jnp.mean(features(image, train_batch_norm=train)[32], axis=(1, 2))
        hidden = make_divisible(self.hidden_channels * self.width_multiplier)
        x = jax.nn.hard_swish(Dense(hidden, self.dtype, name="hidden")(x))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return Dense(self.classes, self.dtype, jnp.dtype("float32"), name="logits")(x)


class MobileNetV3SmallClassifier(MobileNetV3Classifier):
    """Of MobileNetV3-Small: 2,542,856 parameters with the 1,000 classes of ImageNet."""

    backbone = MobileNetV3Small
    hidden_channels = 1024


class MobileNetV3LargeClassifier(MobileNetV3Classifier):
    """Of MobileNetV3-Large: 5,483,032 parameters with the 1,000 classes of ImageNet."""

    backbone = MobileNetV3Large
    hidden_channels = 1280
