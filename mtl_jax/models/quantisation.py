"""Rounding to eight bits within the network, as exported files do it, so that the network can be trained with it.

A layer rounds what it reads, and its kernel, where the variables have a range for it in `RANGES`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

RANGES = "ranges"  # of variables: by layer and pass, f32[2] or f32[2, channels], between which 256 numbers spread
MARKS = "marks"  # of variables: by layer and pass, f32[2], a range by which it is recognised in a translated network
MAX_LEVEL = 255  # the largest of eight bits
LARGEST = 127  # of a kernel's whole numbers
Range = Float[Array, "2"] | Float[Array, "2 channels"]


def concerns(module: nn.Module, name: str) -> bool:
    """Says whether a layer is rounded or marked in a pass."""
    is_marking = module.is_mutable_collection(MARKS) and not module.is_initializing()
    return is_marking or any(module.has_variable(kind, name) for kind in (MARKS, RANGES))


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
    if module.is_mutable_collection(MARKS) and x.ndim == 4 and x.shape[1] * x.shape[2] > 1:
        module.put_variable(MARKS, name, jnp.zeros(2))
    if module.has_variable(MARKS, name):
        return rounded_values(x, jnp.asarray(module.get_variable(MARKS, name))), kernel
    if not module.has_variable(RANGES, name):
        return x, kernel
    return rounded_values(x, jnp.asarray(module.get_variable(RANGES, name))), rounded_kernel(kernel)


def marks(
    model: nn.Module, variables: Mapping[str, Any], image: jax.ShapeDtypeStruct, *, tasks: Sequence[str]
) -> dict[str, Any]:
    """Returns the variables that mark layers which read more than one cell, by layer and pass: from 0 to 1, to 2, ...

    Args:
        model: From `multi_task.build`.
        variables: Of it.
        image: Of RGB in 0..1, [batch, height, width, 3].
        tasks: Names of those to compute.
    """
    settings = {"tasks": tuple(tasks), "train": False, "train_batch_norm": False}
    _, updated = jax.eval_shape(
        functools.partial(model.apply, **settings, mutable=["intermediates", MARKS]), variables, image
    )
    leaves, structure = jax.tree.flatten(dict(updated[MARKS]))
    return jax.tree.unflatten(structure, [jnp.float32([0, number]) for number in range(1, len(leaves) + 1)])


@jax.jit  # under a name by which exported files know it: they have operators for it
def rounded_values(x: Float[Array, "..."], limits: Range) -> Float[Array, "..."]:
    """Rounds to one of 256 numbers; those beyond the limits, of all channels or of each, become the limits.

    The gradient passes the rounding as if it were none, and what lies beyond the limits is theirs.

    References:
        Bengio, Leonard, Courville, "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
        Computation", 2013 (straight-through estimator). Esser et al., "Learned Step Size Quantization", 2020.
    """
    low, high = (limit.reshape(*[1] * (x.ndim - 1), -1) for limit in limits)
    low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
    scale = jnp.where(high > low, (high - low) / MAX_LEVEL, 1.0)  # as in files, where a channel is 0 in all images
    zero = _nearest(jnp.clip(-low / scale, 0, MAX_LEVEL))
    level = _nearest(jnp.clip(x / scale + zero, 0, MAX_LEVEL))
    return ((level - zero) * scale).astype(x.dtype)


def rounded_kernel(kernel: Float[Array, "... features"]) -> Float[Array, "... features"]:
    """Rounds a kernel to 255 numbers around zero, spread as far as each output's largest reaches."""
    largest = jax.lax.stop_gradient(jnp.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)), keepdims=True))
    scale = jnp.maximum(largest / LARGEST, jnp.finfo(jnp.float32).tiny)
    return (_nearest(kernel / scale) * scale).astype(kernel.dtype)


def _nearest(x: Array) -> Array:
    return x + jax.lax.stop_gradient(jnp.rint(x) - x)
