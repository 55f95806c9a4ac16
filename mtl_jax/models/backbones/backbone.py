"""Base class of backbones: settings, and a chain of layers of which some stages may be left out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.errors import UserError
from mtl_jax.models.layers import ConvNorm, Norming, make_divisible

OUTPUT_STRIDES = (8, 16, 32)  # px of input per cell of the last features
FIRST_TAP_STRIDE = 8  # px; finer features are too shallow to be read from

# Each with its stride, in cells of what it reads, and made when it is its turn: layers left out have no parameters.
Layers = list[tuple[int, Callable[[], Callable[..., Array]]]]


@dataclasses.dataclass(frozen=True)
class BackboneMaker:
    """Makes a backbone, or some of its stages, of settings that are decided; equal where what it makes is."""

    kind: Callable[..., nn.Module]
    settings: tuple[Any, ...]  # the first fields of the backbone, in their order
    after: int = 1  # px; stages up to this stride are left out, if the call does not say otherwise

    def __call__(self, **changes: Any) -> nn.Module:
        """Returns the backbone; `after` and `until`, strides in px, leave stages out."""
        return self.kind(*self.settings, **{"after": self.after, **changes})


class Backbone(nn.Module):
    """A chain of layers, or some of its stages; a backbone derives from it and says which layers."""

    width_multiplier: float = 1.0
    output_stride: int = 32
    dtype: jnp.dtype = jnp.dtype("float32")
    batch_norm_momentum: float = 0.9
    after: int = 1  # px; stages up to this stride are left out, and the input is what they would give
    until: int = 32  # px; stages beyond this stride are left out

    epsilon: ClassVar[float] = 1e-3  # of batch norm

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch height width channels"], *, train_batch_norm: Norming
    ) -> dict[int, Float[Array, "batch _ _ _"]]:
        """Returns the deepest features of each stride from 8 px on, up to `output_stride` or `until`.

        Args:
            image: RGB, normalised with ImageNet's mean and standard deviation; or the features of stride `after`.
            train_batch_norm: Where to normalise by the batch and update the running statistics.

        Returns:
            {stride in px: features}; below 8 px, those of `until` alone.

        Raises:
            UserError: The backbone has no such output stride.
        """
        return self.chained(self.layers(), image, train_batch_norm=train_batch_norm)

    def layers(self) -> Layers:
        """The layers of the whole backbone, in order, which become its parts."""
        raise NotImplementedError

    def chained(
        self, layers: Layers, x: Float[Array, "batch height width channels"], *, train_batch_norm: Norming
    ) -> dict[int, Float[Array, "batch _ _ _"]]:
        """Applies the layers beyond `after` and up to `until`; arguments and result as of the backbone itself."""
        total_stride, taps = 1, {self.after: x}
        for stride, make_layer in layers:
            if total_stride * stride > self.until:
                break
            total_stride *= stride
            if total_stride > self.after:
                x = make_layer()(x, train_batch_norm=train_batch_norm)
                taps[total_stride] = x
        return {stride: x for stride, x in taps.items() if stride >= FIRST_TAP_STRIDE or stride == total_stride}

    def width(self, channels: int) -> int:
        """A number of channels at full width as it is here: scaled, and a multiple of 8."""
        return make_divisible(channels * self.width_multiplier)

    @property
    def conv_norm(self) -> functools.partial[ConvNorm]:
        """Makes a convolution with batch norm and activation; takes the other fields of `ConvNorm`."""
        return functools.partial(ConvNorm, epsilon=self.epsilon, momentum=self.batch_norm_momentum, dtype=self.dtype)

    def refuse_dilation(self, name: str) -> None:
        """Raises `UserError` if an output stride other than 32 px is requested from the backbone of this name."""
        if self.output_stride != 32:
            stride_asked = self.output_stride
            raise UserError(f"model.output_stride: expected 32 with backbone {name}, found {stride_asked}; set 32")
