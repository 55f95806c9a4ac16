"""Fast-SCNN: a few layers at full detail, a deep branch at stride 32, and both joined at stride 8."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mtl_jax.errors import UserError
from mtl_jax.models.backbones.backbone import Backbone, Layers
from mtl_jax.models.backbones.inverted_residual import Block, InvertedResidual
from mtl_jax.models.layers import ConvNorm, Norming

DETAIL_STRIDE = 8  # px, of the features that both branches begin with
DETAIL_CHANNELS = (32, 48, 64)  # each layer at stride 2
EXPANSION = 6
# Channels and stride of each group of bottlenecks.
GROUPS = ((64, 2), (96, 2), (128, 1))
GROUP_BLOCKS = 3
POOLED_SIZES = (1, 2, 3, 6)  # cells, both ways
FUSED_CHANNELS = 128
FUSION_DILATION = 4  # cells: as far as a deep cell reaches among the detailed ones


def adaptive_mean_pool(
    x: Float[Array, "batch height width channels"], size: int
) -> Float[Array, "batch {size} {size} channels"]:
    """Means over `size` x `size` windows that cover the map as evenly as whole cells allow.

    Args:
        x: Features.
        size: Windows, both ways; they overlap where there are more of them than divide the map.

    Returns:
        One cell for each window.
    """
    rows, columns = (jnp.asarray(_windows(cells, size), x.dtype) for cells in x.shape[1:3])
    means = jnp.tensordot(jnp.tensordot(x, rows, ((1,), (1,))), columns, ((1,), (1,)))
    return means.transpose(0, 2, 3, 1)


def _windows(cells: int, count: int) -> np.ndarray:
    """The weight of each cell in each window along one side."""
    weights = np.zeros((count, cells))
    for number in range(count):
        first, last = number * cells // count, -(-(number + 1) * cells // count)
        weights[number, first:last] = 1 / (last - first)
    return weights


def upsample(
    x: Float[Array, "batch height width channels"], height: int, width: int
) -> Float[Array, "batch {height} {width} channels"]:
    """Bilinear interpolation to `height` x `width` cells."""
    return jax.image.resize(x, (x.shape[0], height, width, x.shape[-1]), "linear")


class SeparableConv(nn.Module):
    """A depthwise 3x3 and a 1x1 convolution, each with batch norm."""

    features: int
    conv_norm: Callable[..., ConvNorm]
    stride: int = 1
    dilation: int = 1
    activations: tuple[str, str] = ("identity", "relu")  # after each of the two

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train_batch_norm: Norming
    ) -> Float[Array, "batch out_height out_width features"]:
        """Applies both."""
        first, second = self.activations
        depthwise = self.conv_norm(None, first, 3, self.stride, self.dilation, name="depthwise")
        pointwise = self.conv_norm(self.features, second, name="pointwise")
        return pointwise(depthwise(x, train_batch_norm=train_batch_norm), train_batch_norm=train_batch_norm)


class PyramidPooling(nn.Module):
    """Adds the means over coarser and coarser windows to each cell.

    References:
        Zhao et al., "Pyramid Scene Parsing Network", 2017.
    """

    features: int
    conv_norm: Callable[..., ConvNorm]

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train_batch_norm: Norming
    ) -> Float[Array, "batch height width features"]:
        """Applies the layer."""
        levels = [x]
        for size in POOLED_SIZES:
            conv = self.conv_norm(x.shape[-1] // len(POOLED_SIZES), "relu", name=f"pooled_{size}")
            pooled = conv(adaptive_mean_pool(x, size), train_batch_norm=train_batch_norm)
            levels.append(upsample(pooled, *x.shape[1:3]))
        merge = self.conv_norm(self.features, "relu", name="merge")
        return merge(jnp.concatenate(levels, axis=-1), train_batch_norm=train_batch_norm)


class FeatureFusion(nn.Module):
    """Brings deep features to the size of the detailed ones, and adds the two."""

    features: int
    conv_norm: Callable[..., ConvNorm]

    @nn.compact
    def __call__(
        self,
        detail: Float[Array, "batch height width _"],
        deep: Float[Array, "batch _ _ _"],
        *,
        train_batch_norm: Norming,
    ) -> Float[Array, "batch height width features"]:
        """Applies the layer."""
        height, width = detail.shape[1:3]
        smooth = SeparableConv(
            self.features, self.conv_norm, dilation=FUSION_DILATION, activations=("relu", "identity"), name="deep"
        )
        lateral = self.conv_norm(self.features, "identity", name="detail")
        deep = smooth(upsample(deep, height, width), train_batch_norm=train_batch_norm)
        return jax.nn.relu(lateral(detail, train_batch_norm=train_batch_norm) + deep)


class FastSCNN(Backbone):
    """Learning to downsample, the global feature extractor and their fusion; 128, 64 and 128 channels at full width.

    Stride 8 gives the fused features, 16 and 32 those of the extractor. Its parts are detail_1 … detail_3, block_1 …
    block_9, pooling, fusion. Its one output stride is 32. It divides at strides up to 8 px, where the two branches
    part; the fusion belongs to what comes after.

    References:
        Poudel, Liwicki, Cipolla, "Fast-SCNN: Fast Semantic Segmentation Network", 2019.
    """

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch height width channels"], *, train_batch_norm: Norming
    ) -> dict[int, Float[Array, "batch _ _ _"]]:
        """As `Backbone`; also refuses to divide beyond 8 px, with a `UserError`."""
        divided_at = self.until if self.until < 32 else self.after
        if divided_at > DETAIL_STRIDE:
            raise UserError(
                "config.model.share_until, norms_from: expected at most 8 px with backbone fast_scnn, which joins "
                f"strides 8 and 32 px, found {divided_at} px; share up to 8 px, or all"
            )
        features = self.chained(self.layers(), image, train_batch_norm=train_batch_norm)
        if self.until < 32:
            return features
        fusion = FeatureFusion(self.width(FUSED_CHANNELS), self.conv_norm, name="fusion")
        return features | {
            DETAIL_STRIDE: fusion(features[DETAIL_STRIDE], features[32], train_batch_norm=train_batch_norm)
        }

    def layers(self) -> Layers:
        """The layers before the fusion, which become parts of the backbone."""
        self.refuse_dilation("fast_scnn")
        first, *wider = map(self.width, DETAIL_CHANNELS)
        layers: Layers = [(2, partial(self.conv_norm, first, "relu", 3, 2, name="detail_1"))]
        for number, channels in enumerate(wider, start=2):
            layers.append((2, partial(SeparableConv, channels, self.conv_norm, 2, name=f"detail_{number}")))
        for number, block in enumerate(self._blocks(wider[-1]), start=1):
            layers.append((block.stride, partial(InvertedResidual, block, self.conv_norm, name=f"block_{number}")))
        return [*layers, (1, partial(PyramidPooling, self.width(GROUPS[-1][0]), self.conv_norm, name="pooling"))]

    def _blocks(self, inputs: int) -> list[Block]:
        blocks = []
        for channels, stride in GROUPS:
            features = self.width(channels)
            for step in (stride, *(1,) * (GROUP_BLOCKS - 1)):
                blocks.append(Block(3, EXPANSION * inputs, features, 0, "relu", step))
                inputs = features
        return blocks
