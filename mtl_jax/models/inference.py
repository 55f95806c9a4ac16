"""Convolution, batch norm by fixed statistics and activation in one compiled pass, where no gradient is taken."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mtl_jax.kernels import cpu_kernels
from mtl_jax.models import batch_norm, depthwise_cpu
from mtl_jax.models.convolution import dense_conv, pointwise_conv, runs_by_winograd, winograd_kernel
from mtl_jax.models.depthwise import depthwise_conv
from mtl_jax.models.depthwise_forms import Window

Features = Float[Array, "batch height width channels"]
GATES = (jax.nn.hard_sigmoid, jax.nn.sigmoid)  # in the order of the compiled kernel


class Gated(NamedTuple):
    """Features and the weights of their channels, not multiplied yet."""

    x: Features
    weights: Float[Array, "batch 1 1 channels"]

    def outputs(self) -> Features:
        """Returns the product."""
        return self.x * self.weights


class Convolution(NamedTuple):
    """A convolution that is not computed yet, so that batch norm can be part of it.

    Its kernel is [channels, features] where it is 1x1, [size, size, 1, channels] where it is depthwise, and
    [size, size, channels, features] otherwise.
    """

    x: Features | Gated
    kernel: Float[Array, "..."]
    stride: int = 1
    dilation: int = 1
    depthwise: bool = False

    def outputs(self) -> Features:
        """Returns the result of the convolution alone."""
        return _convolved(self._settings, *self._arrays)

    def normalised(
        self,
        factor: Float[Array, " features"],
        shift: Float[Array, " features"],
        *,
        activation: str,
        residual: Features | None = None,
    ) -> Features:
        """Returns activation(factor * result + shift) + residual.

        With the compiled CPU kernels it is one pass, unless a gradient is taken; both ways agree to about 1e-6 of the
        largest result.

        Args:
            factor: Of each feature.
            shift: Of each feature.
            activation: One of `batch_norm.ACTIVATIONS`.
            residual: Added to the result.
        """
        operands = _Operands(*self._arrays, factor, shift, residual)
        function = _fused if _supports(self._settings, self._arrays) else _one_by_one
        return function(self._settings, activation, operands)

    @property
    def _settings(self) -> _Settings:
        return _Settings(self.stride, self.dilation, self.depthwise)

    @property
    def _arrays(self) -> tuple[Array, Array | None, Array]:
        x, weights = self.x if isinstance(self.x, Gated) else (self.x, None)
        return x, weights, self.kernel


class _Settings(NamedTuple):
    stride: int
    dilation: int
    depthwise: bool

    def window(self, x: Array, kernel: Array) -> Window:
        size = 1 if kernel.ndim == 2 else kernel.shape[0]
        return Window((x.shape[1], x.shape[2]), (size, size), self.stride, self.dilation)


def _supports(settings: _Settings, arrays: tuple[Array, Array | None, Array]) -> bool:
    """Whether a compiled kernel takes the convolution; a gate belongs to one that mixes channels."""
    x, weights, kernel = arrays
    if kernel.shape[-1] % cpu_kernels.LANES or not _in_single_precision(x, kernel):
        return False
    if settings.depthwise:
        return weights is None and depthwise_cpu.supports(settings.window(x, kernel), x.dtype)
    if weights is not None and kernel.ndim > 2:
        return False
    return settings.dilation == 1


def _in_single_precision(x: Array, kernel: Array) -> bool:
    """Whether a CPU computes with the compiled kernels, which take float32 alone, and the operands are that."""
    return x.dtype == kernel.dtype == jnp.float32 and cpu_kernels.in_use()


def _convolved(settings: _Settings, x: Array, weights: Array | None, kernel: Array) -> Array:
    x = x if weights is None else x * weights
    if kernel.ndim == 2:
        return pointwise_conv(x, kernel)
    convolve = depthwise_conv if settings.depthwise else dense_conv
    return convolve(x, kernel, stride=settings.stride, dilation=settings.dilation)


class _Operands(NamedTuple):
    x: Array
    weights: Array | None  # of the channels of x
    kernel: Array
    factor: Array
    shift: Array
    residual: Array | None


def _one_by_one(settings: _Settings, activation: str, operands: _Operands) -> Array:
    x, weights, kernel, factor, shift, residual = operands
    y = batch_norm.affine(_convolved(settings, x, weights, kernel), factor, shift, activation=activation)
    return y if residual is None else y + residual


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fused(settings: _Settings, activation: str, operands: _Operands) -> Array:
    x, weights, kernel, factor, shift, residual = operands
    window = settings.window(x, kernel)
    shape = (*window.output_size, kernel.shape[-1])
    options = {"stride": settings.stride, "activation": batch_norm.ACTIVATIONS.index(activation)}
    if settings.depthwise:
        options |= {"kernel_size": window.kernel_size[0], "dilation": settings.dilation}
        call = cpu_kernels.Kernel("depthwise_norm", shape, (True, False, False, False), tuple(options.items()))
        y = cpu_kernels.call(call, x, kernel, factor, shift)
        return y if residual is None else y + residual
    if runs_by_winograd(x, kernel, stride=settings.stride, dilation=settings.dilation):
        del options["stride"]
        call = cpu_kernels.Kernel("winograd_norm", shape, (True, False, False, False), tuple(options.items()))
        y = cpu_kernels.call(call, x, winograd_kernel(kernel), factor, shift)
        return y if residual is None else y + residual
    options |= {
        "size": window.kernel_size[0],
        "gated": int(weights is not None),
        "residual": int(residual is not None),
    }
    gate = None if weights is None else weights.reshape(weights.shape[0], -1)
    extra_operands = [operand for operand in (gate, residual) if operand is not None]
    batched = (True, False, False, False, *(True for _ in extra_operands))
    call = cpu_kernels.Kernel("convolution_norm", shape, batched, tuple(options.items()))
    return cpu_kernels.call(call, x, kernel, factor, shift, *extra_operands)


_fused.defvjp(
    lambda settings, activation, operands: jax.vjp(partial(_one_by_one, settings, activation), operands),
    lambda settings, activation, backward, g: backward(g),
)


def dense(
    x: Float[Array, "*cells channels"],
    kernel: Float[Array, "channels features"],
    bias: Float[Array, " features"],
    residual: Float[Array, "*cells features"] | None,
    *,
    output_dtype: jnp.dtype,
) -> Float[Array, "*cells features"]:
    """A matrix product over the last axis, plus `bias` and `residual`; of a map of features in one pass, as above."""
    whole_vectors = kernel.shape[-1] % cpu_kernels.LANES == 0 or residual is None
    fits = x.ndim == 4 and output_dtype == jnp.float32 and whole_vectors
    is_fusable = fits and _in_single_precision(x, kernel)
    return _fused_dense(x, kernel, bias, residual) if is_fusable else _dense(x, kernel, bias, residual, output_dtype)


def _dense(x: Array, kernel: Array, bias: Array, residual: Array | None, output_dtype: jnp.dtype) -> Array:
    product = jnp.einsum("...i,io->...o", x, kernel, preferred_element_type=output_dtype)
    y = product + jnp.broadcast_to(bias.astype(output_dtype), product.shape)
    return y if residual is None else y + residual


_POINTWISE = _Settings(1, 1, depthwise=False)


@jax.custom_vjp
def _fused_dense(x: Array, kernel: Array, bias: Array, residual: Array | None) -> Array:
    features = bias.shape[0]
    missing = -features % cpu_kernels.LANES  # to whole vectors
    kernel, bias = jnp.pad(kernel, ((0, 0), (0, missing))), jnp.pad(bias, (0, missing))
    factor = np.ones(bias.shape, np.float32)  # of NumPy: a constant, which XLA does not compute every time
    y: Any = _fused(_POINTWISE, "identity", _Operands(x, None, kernel, jnp.asarray(factor), bias, residual))
    return y[..., :features]


_fused_dense.defvjp(
    lambda *arrays: jax.vjp(partial(_dense, output_dtype=jnp.dtype("float32")), *arrays),
    lambda backward, g: backward(g),
)


class Excitation(NamedTuple):
    """Activations of squeeze-and-excitation: of its hidden layer, and of its channel weights."""

    activation: str
    gate: Callable[[Array], Array]


Layers = tuple[tuple[Array, Array], tuple[Array, Array]]  # kernel and bias of reduction and of expansion


def excitation_supports(settings: Excitation, x: Features, layers: Layers) -> bool:
    """Whether the compiled kernel takes a squeeze-and-excitation and was built here."""
    lanes = all(kernel.shape[-1] % cpu_kernels.LANES == 0 for kernel, _ in layers)
    return lanes and batch_norm.compiled(x) and settings.gate in GATES


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def excitation(settings: Excitation, x: Features, layers: Layers) -> Float[Array, "batch 1 1 channels"]:
    """The channel weights of squeeze-and-excitation in one compiled call, unless a gradient is taken.

    References:
        Hu et al., "Squeeze-and-Excitation Networks", 2018.
    """
    gate, activation = GATES.index(settings.gate), batch_norm.ACTIVATIONS.index(settings.activation)
    options = (("activation", activation), ("gate", gate))
    call = cpu_kernels.Kernel("excitation", (x.shape[-1],), (True, *(False,) * 4), options)
    cells = x.reshape(x.shape[0], -1, x.shape[-1])
    return cpu_kernels.call(call, cells, *layers[0], *layers[1])[:, None, None, :]


def _excitation(settings: Excitation, x: Array, layers: Layers) -> Array:
    (reduce, reduce_bias), (expand, expand_bias) = ((kernel, bias[None, None, None]) for kernel, bias in layers)
    pooled = jnp.mean(x, axis=(1, 2), keepdims=True)
    hidden = batch_norm.VALUES[settings.activation](pooled @ reduce + reduce_bias)
    return settings.gate(hidden @ expand + expand_bias)


excitation.defvjp(
    lambda settings, *arrays: jax.vjp(partial(_excitation, settings), *arrays),
    lambda settings, backward, g: backward(g),
)
