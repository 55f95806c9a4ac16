"""Inverted residuals with squeeze-and-excitation, and the backbones that are a chain of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models.backbones.backbone import Backbone, Layers
from mtl_jax.models.batch_norm import VALUES
from mtl_jax.models.inference import Excitation, Gated, excitation, excitation_supports
from mtl_jax.models.layers import ConvNorm, Dense, Norming


class Block(NamedTuple):
    """One inverted residual."""

    kernel_size: int
    expanded: int  # channels of the depthwise convolution
    features: int  # channels of the output
    squeezed: int  # channels between the two layers of squeeze-and-excitation; 0 leaves it out
    activation: str
    stride: int
    dilation: int = 1


HARD_EXCITATION = Excitation("relu", jax.nn.hard_sigmoid)  # Howard et al., "Searching for MobileNetV3", 2019


def dilated(blocks: Iterable[Block], *, output_stride: int) -> tuple[Block, ...]:
    """Turns strides beyond `output_stride` into dilation.

    A block that would pass `output_stride` keeps its resolution and, like those after it, dilates its kernel
    instead, which is how torchvision makes backbones for segmentation.

    Args:
        blocks: The blocks that follow a stem of stride 2 px.
        output_stride: Stride of the last features in px: 8, 16 or 32.

    Returns:
        The blocks as built.

    References:
        Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017.
    """
    layers, stride, dilation = [], 2, 1
    for block in blocks:
        step = block.stride
        if stride * step > output_stride:
            dilation, step = dilation * step, 1
        stride *= step
        layers.append(block._replace(stride=step, dilation=dilation))
    return tuple(layers)


class SqueezeExcite(nn.Module):
    """Weighs every channel by what the whole map holds.

    References:
        Hu et al., "Squeeze-and-Excitation Networks", 2018.
    """

    squeezed: int
    excitation: Excitation
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Gated:
        """Returns `x` and its channel weights, which lie in 0..1."""
        pooled = jnp.mean(x, axis=(1, 2), keepdims=True)
        reduce, expand = Dense(self.squeezed, self.dtype, name="reduce"), Dense(x.shape[-1], self.dtype, name="expand")
        hidden = VALUES[self.excitation.activation](reduce(pooled))
        weights = self.excitation.gate(expand(hidden))
        first, second = reduce.variables["params"], expand.variables["params"]
        layers = (first["kernel"], first["bias"]), (second["kernel"], second["bias"])
        fused: Any = excitation(self.excitation, x, layers) if excitation_supports(self.excitation, x, layers) else None
        return Gated(x, weights if fused is None else fused)


class InvertedResidual(nn.Module):
    """Expands the channels, convolves each by itself, weighs them, and projects them down again.

    References:
        Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018.
    """

    block: Block
    conv_norm: Callable[..., ConvNorm]
    excitation: Excitation = HARD_EXCITATION
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train_batch_norm: Norming
    ) -> Float[Array, "batch out_height out_width features"]:
        """Applies the block; where the shape stays, the input is added to the result."""
        block, inputs = self.block, x
        if block.expanded != inputs.shape[-1]:
            expand = self.conv_norm(block.expanded, block.activation, name="expand")
            x = expand(x, train_batch_norm=train_batch_norm)
        window = block.kernel_size, block.stride, block.dilation
        depthwise = self.conv_norm(None, block.activation, *window, name="depthwise")
        mixed: Array | Gated = depthwise(x, train_batch_norm=train_batch_norm)
        if block.squeezed:
            mixed = SqueezeExcite(block.squeezed, self.excitation, self.dtype, name="squeeze_excite")(mixed)
        project = self.conv_norm(block.features, "identity", name="project")
        unchanged = block.stride == 1 and block.features == inputs.shape[-1]
        return project(mixed, train_batch_norm=train_batch_norm, residual=inputs if unchanged else None)


class InvertedResidualBackbone(Backbone):
    """A stem, inverted residuals, and a last 1x1 convolution; its parts are stem, block_1, block_2 …, last."""

    activation: ClassVar[str]  # of the stem and of the last convolution
    stem_channels: ClassVar[int]
    last_expansion: ClassVar[int]  # channels of the last convolution per channel of the last block
    excitation: ClassVar[Excitation] = HARD_EXCITATION

    def blocks(self) -> tuple[Block, ...]:
        """The blocks at this width and output stride."""
        raise NotImplementedError

    def layers(self) -> Layers:
        """The layers, in order."""
        blocks = self.blocks()
        stem = partial(self.conv_norm, self.width(self.stem_channels), self.activation, 3, 2, name="stem")
        residual = partial(InvertedResidual, conv_norm=self.conv_norm, excitation=self.excitation, dtype=self.dtype)
        residuals = [
            (block.stride, partial(residual, block, name=f"block_{number}"))
            for number, block in enumerate(blocks, start=1)
        ]
        last = partial(self.conv_norm, self.last_expansion * blocks[-1].features, self.activation, name="last")
        return [(2, stem), *residuals, (1, last)]
