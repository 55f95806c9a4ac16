"""A plain convolutional backbone: learns small images from random weights in minutes, where MobileNetV3 takes hours."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.errors import UserError
from mtl_jax.models.layers import ConvNorm, Norming, make_divisible

# Channels and stride of each 3x3 convolution. Features are tapped where a stride of 8 px or more ends.
LAYERS = ((16, 2), (32, 2), (64, 2), (64, 1), (96, 2), (96, 1), (128, 2))
FIRST_TAP_STRIDE = 8  # px
BATCH_NORM_EPSILON = 1e-3


class PlainCNN(nn.Module):
    """3x3 convolutions with batch norm and ReLU, in the manner of VGG (Simonyan and Zisserman, 2015); strides 8 to 32.

    About 0.31 M parameters at full width.
    """

    width_multiplier: float = 1.0
    output_stride: int = 32
    dtype: jnp.dtype = jnp.dtype("float32")
    batch_norm_momentum: float = 0.9
    after: int = 1  # px; layers up to this stride are left out, and the input is what they would give
    until: int = 32  # px; layers beyond this stride are left out

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch height width channels"], *, train_batch_norm: Norming
    ) -> dict[int, Float[Array, "batch _ _ _"]]:
        """Returns the deepest features of each stride from 8 px on, up to 32 px or `until`.

        Args:
            image: RGB, normalised with ImageNet's mean and standard deviation; or the features of stride `after`.
            train_batch_norm: Where to normalise by the batch and update the running statistics.

        Raises:
            UserError: An output stride other than 32.
        """
        if self.output_stride != 32:
            raise UserError(f"model.output_stride: backbone plain_cnn has 32, found {self.output_stride}: set 32")
        conv_norm = functools.partial(
            ConvNorm, epsilon=BATCH_NORM_EPSILON, momentum=self.batch_norm_momentum, dtype=self.dtype
        )
        x, reached = image, 1
        taps = {self.after: x} if self.after >= FIRST_TAP_STRIDE else {}
        for number, (channels, stride) in enumerate(LAYERS):
            if reached * stride > self.until:
                return taps | {reached: x}
            reached *= stride
            if reached > self.after:
                width = make_divisible(channels * self.width_multiplier)
                layer = conv_norm(width, "relu", 3, stride, name=f"layer_{number}")
                x = layer(x, train_batch_norm=train_batch_norm)
                if reached >= FIRST_TAP_STRIDE:
                    taps[reached] = x
        return taps
