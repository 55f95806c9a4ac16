"""EfficientNet-B0, layer for layer as torchvision builds it, with features at strides 8, 16 and 32."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models.backbones.inverted_residual import Block, InvertedResidualBackbone, dilated
from mtl_jax.models.inference import Excitation
from mtl_jax.models.layers import Dense, make_divisible

SILU = "silu"
STEM_CHANNELS = 32


class Stage(NamedTuple):
    """One row of the table: blocks of one width, of which the first may have a stride."""

    expansion: int  # channels of the depthwise convolution per channel of the block's input
    kernel_size: int
    stride: int
    features: int  # channels of the output
    repeats: int


# Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019, table 1.
B0 = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)


def layer_table(*, width_multiplier: float = 1.0, output_stride: int = 32) -> tuple[Block, ...]:
    """The blocks as built: channels scaled, strides beyond `output_stride` turned into dilation.

    Args:
        width_multiplier: Factor on every number of channels between blocks, which are then rounded to multiples of 8.
        output_stride: Stride of the last features in px: 8, 16 or 32.

    Returns:
        One block per repeat of every stage.
    """
    blocks, inputs = [], make_divisible(STEM_CHANNELS * width_multiplier)
    for stage in B0:
        features = make_divisible(stage.features * width_multiplier)
        for repeat in range(stage.repeats):
            stride = 1 if repeat else stage.stride
            expanded = make_divisible(stage.expansion * inputs)
            blocks.append(Block(stage.kernel_size, expanded, features, inputs // 4, SILU, stride))
            inputs = features
    return dilated(blocks, output_stride=output_stride)


class EfficientNetB0(InvertedResidualBackbone):
    """The convolutional part of EfficientNet-B0: 16 blocks; 40, 112 and 1280 channels at full width.

    Stochastic depth, with which the published weights were trained, is left out.

    References:
        Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019.
    """

    epsilon = 1e-5  # torchvision's, with which the published weights were trained
    activation = SILU
    stem_channels = STEM_CHANNELS
    last_expansion = 4
    excitation = Excitation(SILU, jax.nn.sigmoid)

    def blocks(self) -> tuple[Block, ...]:
        """The blocks at this width and output stride."""
        return layer_table(width_multiplier=self.width_multiplier, output_stride=self.output_stride)


class EfficientNetB0Classifier(nn.Module):
    """The whole published network: 5,288,548 parameters with the 1,000 classes of ImageNet."""

    classes: int = 1000
    width_multiplier: float = 1.0
    dropout_rate: float = 0.2  # torchvision's
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, image: Float[Array, "batch height width 3"], *, train: bool) -> Float[Array, "batch classes"]:
        """Returns logits; `train` turns dropout and the batch's own statistics on."""
        features = EfficientNetB0(self.width_multiplier, dtype=self.dtype, name="features")
        x = jnp.mean(features(image, train_batch_norm=train)[32], axis=(1, 2))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return Dense(self.classes, self.dtype, jnp.dtype("float32"), name="logits")(x)
