"""Batch norm and activation as pure functions, in one compiled pass each where the CPU kernels are."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.kernels import cpu_kernels

ACTIVATIONS = ("identity", "relu", "hard_swish", "silu")  # in the order of the compiled kernels
VALUES = {"identity": lambda z: z, "relu": jax.nn.relu, "hard_swish": jax.nn.hard_swish, "silu": jax.nn.silu}

Cells = Float[Array, "batch cells channels"]
Channels = Float[Array, " channels"]


def by_batch(
    x: Float[Array, "batch *space channels"], scale: Channels, bias: Channels, *, epsilon: float, activation: str
) -> tuple[Float[Array, "batch *space channels"], Channels, Channels]:
    """Normalises by the batch's own statistics, scales, shifts and activates.

    Args:
        x: Features.
        scale: Factor on the normalised features.
        bias: Added to them.
        epsilon: Added to the variance.
        activation: One of `ACTIVATIONS`.

    Returns:
        The result, in the dtype of `x`, and the batch's mean and biased variance in float32, which no gradient
        flows through.

    References:
        Ioffe, Szegedy, "Batch Normalization", 2015.
    """
    if compiled(x):
        results: Any = _compiled_by_batch((epsilon, activation), _cells(x), scale, bias)
        y, mean, variance = results
        return y.reshape(x.shape), jax.lax.stop_gradient(mean), jax.lax.stop_gradient(variance)
    axes = tuple(range(x.ndim - 1))
    wide = x.astype(jnp.float32)
    mean = wide.mean(axes)
    variance = jnp.maximum((wide * wide).mean(axes) - mean * mean, 0.0)
    y = by_statistics(x, scale, bias, mean, variance, epsilon=epsilon, activation=activation)
    return y, jax.lax.stop_gradient(mean), jax.lax.stop_gradient(variance)


def by_statistics(
    x: Float[Array, "batch *space channels"],
    scale: Channels,
    bias: Channels,
    mean: Channels,
    variance: Channels,
    *,
    epsilon: float,
    activation: str,
) -> Float[Array, "batch *space channels"]:
    """Normalises by given statistics, scales, shifts and activates; arguments as in `by_batch`."""
    factor, shift = coefficients(scale, bias, mean, variance, epsilon=epsilon)
    return affine(x, factor, shift, activation=activation)


def coefficients(
    scale: Channels, bias: Channels, mean: Channels, variance: Channels, *, epsilon: float
) -> tuple[Channels, Channels]:
    """Returns the factor and the shift equivalent to batch norm with fixed statistics; arguments as in `by_batch`."""
    factor = scale * jax.lax.rsqrt(variance + epsilon)
    return factor, bias - mean * factor


def affine(
    x: Float[Array, "batch *space channels"], factor: Channels, shift: Channels, *, activation: str
) -> Float[Array, "batch *space channels"]:
    """Returns activation(factor * x + shift), in the dtype of `x`."""
    if compiled(x):
        y: Any = _compiled_affine(activation, _cells(x), factor, shift)
        return y.reshape(x.shape)
    factor, shift = (jnp.expand_dims(cells, tuple(range(x.ndim - 1))) for cells in (factor, shift))
    return VALUES[activation](x.astype(jnp.float32) * factor + shift).astype(x.dtype)


def compiled(x: Array) -> bool:
    """Whether the compiled kernels take these features and were built here."""
    fits = x.dtype == jnp.float32 and x.shape[-1] % cpu_kernels.LANES == 0 and x.ndim > 2
    return fits and cpu_kernels.in_use()


def _cells(x: Array) -> Array:
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _call(target: str, activation: str, result: tuple[int, ...], *operands: Array) -> Array:
    """Runs a kernel; all operands but the last, the coefficients, have the examples first."""
    batched = (True,) * (len(operands) - 1) + (False,)
    options = (("activation", ACTIVATIONS.index(activation)),)
    return cpu_kernels.call(cpu_kernels.Kernel(target, result, batched, options), *operands)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _compiled_affine(activation: str, x: Cells, factor: Channels, shift: Channels) -> Cells:
    return _call("norm_apply", activation, x.shape[1:], x, jnp.stack([factor, shift]))


def _affine_backward(activation: str, residuals: tuple[Array, ...], g: Cells) -> tuple[Array, Array, Array]:
    x, factor, shift = residuals
    zero = jnp.zeros_like(factor)
    dz_sum, dz_x_sum = _gradient_sums(activation, x, g, factor, shift)
    coefficients = jnp.stack([factor, shift, factor, zero, zero])
    return _call("norm_input_gradient", activation, x.shape[1:], x, g, coefficients), dz_x_sum, dz_sum


_compiled_affine.defvjp(
    lambda activation, x, factor, shift: (_compiled_affine(activation, x, factor, shift), (x, factor, shift)),
    _affine_backward,
)


def _gradient_sums(activation: str, x: Cells, g: Cells, factor: Channels, shift: Channels) -> tuple[Array, Array]:
    sums = _call("norm_gradient_sums", activation, (2, x.shape[-1]), x, g, jnp.stack([factor, shift])).sum(0)
    return sums[0], sums[1]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _compiled_by_batch(
    settings: tuple[float, str], x: Cells, scale: Channels, bias: Channels
) -> tuple[Cells, Channels, Channels]:
    return _by_batch_forward(settings, x, scale, bias)[0]


def _by_batch_forward(settings: tuple[float, str], x: Cells, scale: Channels, bias: Channels):
    epsilon, activation = settings
    kernel = cpu_kernels.Kernel("norm_moments", (2, x.shape[-1]), (True,))
    first, second = cpu_kernels.call(kernel, x).sum(0) / (x.shape[0] * x.shape[1])
    mean, variance = first, jnp.maximum(second - first * first, 0.0)
    factor = scale * jax.lax.rsqrt(variance + epsilon)
    y = _call("norm_apply", activation, x.shape[1:], x, jnp.stack([factor, bias - mean * factor]))
    return (y, mean, variance), (x, scale, bias, mean, variance)


def _by_batch_backward(settings: tuple[float, str], residuals: tuple[Array, ...], cotangents: tuple[Array, ...]):
    epsilon, activation = settings
    x, scale, bias, mean, variance = residuals
    g, count = cotangents[0], x.shape[0] * x.shape[1]
    inverse = jax.lax.rsqrt(variance + epsilon)
    factor = scale * inverse
    shift = bias - mean * factor
    dz_sum, dz_x_sum = _gradient_sums(activation, x, g, factor, shift)
    scale_gradient = inverse * (dz_x_sum - mean * dz_sum)
    # dx = factor * (dz - mean of dz - normalised x * mean of dz * normalised x)
    along = -factor * inverse * scale_gradient / count
    constant = -factor * dz_sum / count - along * mean
    coefficients = jnp.stack([factor, shift, factor, along, constant])
    return _call("norm_input_gradient", activation, x.shape[1:], x, g, coefficients), scale_gradient, dz_sum


_compiled_by_batch.defvjp(_by_batch_forward, _by_batch_backward)
