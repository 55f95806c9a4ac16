"""Rounding to eight bits within the network, as exported files do it, so that the network can be trained with it.

A layer rounds what it reads, and its kernel, where the variables have a range for it in `RANGES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

RANGES = "ranges"  # of variables: by layer and pass, f32[2], between which values 256 numbers spread
OBSERVED = "observed"  # of variables that a pass returns: by layer and pass, some of the values that are read
SAMPLES = 8192  # values of an image that are observed
MAX_LEVEL = 255  # the largest of eight bits
LARGEST = 127  # of a kernel's whole numbers
Range = Float[Array, "2"]


def concerns(module: nn.Module, name: str) -> bool:
    """Says whether a layer has a range in a pass, or is to be observed."""
    is_observed = module.is_mutable_collection(OBSERVED) and not module.is_initializing()
    return is_observed or module.has_variable(RANGES, name)


def rounded(
    module: nn.Module, x: Float[Array, "..."], kernel: Float[Array, "... features"], *, name: str
) -> tuple[Float[Array, "..."], Float[Array, "... features"]]:
    """Returns what a layer reads and its kernel, rounded to eight bits where the layer has a range.

    Args:
        module: The layer.
        x: What it reads.
        kernel: Outputs last.
        name: Of the pass: a task's, or "all".

    References:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        2018.
    """
    if module.is_mutable_collection(OBSERVED) and x.ndim == 4 and x.shape[1] * x.shape[2] > 1:
        step = x.size // SAMPLES | 1  # odd, so that not the same columns are looked at in every row
        values = x.reshape(-1, x.shape[-1])[::step]
        if module.has_variable(OBSERVED, name):  # of another level, which passes through the same layer
            values = jnp.concatenate([jnp.asarray(module.get_variable(OBSERVED, name)), values])
        module.put_variable(OBSERVED, name, values)
    if not module.has_variable(RANGES, name):
        return x, kernel
    limits = jnp.asarray(module.get_variable(RANGES, name))
    return rounded_values(x, limits), jnp.where(limits[1] > limits[0], rounded_kernel(kernel), kernel)


def observed(
    model: nn.Module, variables: Mapping[str, Any], image: Float[Array, "batch height width 3"], *, tasks: Sequence[str]
) -> dict[str, Any]:
    """Returns some of the values that each layer reads of images, by layer and pass, if it reads more than one cell.

    Args:
        model: From `multi_task.build`.
        variables: Of it.
        image: RGB in 0..1.
        tasks: Names of those to compute.
    """
    _, updated = model.apply(
        variables, image, tasks=tuple(tasks), train=False, train_batch_norm=False, mutable=["intermediates", OBSERVED]
    )
    return dict(updated[OBSERVED])


@jax.jit  # under a name by which exported files know it: they have operators for it
def rounded_values(x: Float[Array, "..."], limits: Range) -> Float[Array, "..."]:
    """Rounds to one of 256 numbers; those beyond the limits become the limits. Limits of 0 and 0 change nothing.

    The gradient passes the rounding as if it were none, and what lies beyond the limits is theirs.

    References:
        Bengio, Leonard, Courville, "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
        Computation", 2013 (straight-through estimator). Esser et al., "Learned Step Size Quantization", 2020.
    """
    low, high = jnp.minimum(limits[0], 0.0), jnp.maximum(limits[1], 0.0)
    is_on = high > low
    scale = jnp.where(is_on, (high - low) / MAX_LEVEL, 1.0)
    zero = _nearest(jnp.clip(-low / scale, 0, MAX_LEVEL))
    level = _nearest(jnp.clip(x / scale + zero, 0, MAX_LEVEL))
    return jnp.where(is_on, (level - zero) * scale, x).astype(x.dtype)


def rounded_kernel(kernel: Float[Array, "... features"]) -> Float[Array, "... features"]:
    """Rounds a kernel to 255 numbers around zero, spread as far as each output's largest reaches."""
    largest = jax.lax.stop_gradient(jnp.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)), keepdims=True))
    scale = jnp.maximum(largest / LARGEST, jnp.finfo(jnp.float32).tiny)
    return (_nearest(kernel / scale) * scale).astype(kernel.dtype)


def _nearest(x: Array) -> Array:
    return x + jax.lax.stop_gradient(jnp.rint(x) - x)
