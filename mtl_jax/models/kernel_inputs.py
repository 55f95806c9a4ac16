"""Inputs of kernels as patches, in the order of the kernel's rows, and their second moments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models.inference import Gated
from mtl_jax.models.layers import Conv, Dense


class KernelInputs(NamedTuple):
    """Inputs read in a pass through a network, by the paths of the parameters that they were read with."""

    # Kernel -> the sum of x x^T over all inputs x; one for each time that the pass applied the kernel, as head and
    # levels do with the same one.
    covariances: dict[str, Float[Array, "calls groups inputs inputs"]]
    other_params: dict[str, Float[Array, "..."]]  # biases, batch norms and kernels of another kind: the parameters


def covariances(
    model: nn.Module,
    variables: Mapping[str, Any],
    image: Float[Array, "batch height width 3"],
    *,
    tasks: tuple[str, ...],
    selects: Callable[[str], bool],
) -> KernelInputs:
    """Passes images through a network as evaluation does, and adds up the uncentred covariance of what kernels read.

    Args:
        model: from `multi_task.build`.
        variables: parameters and running statistics.
        image: RGB in 0..1.
        tasks: whose outputs are computed; what only other tasks read is left out.
        selects: says by its path whether a parameter is of interest.
    """
    sums: dict[str, list[Array]] = {}
    other_params: dict[str, Array] = {}

    def watch(call: Callable[..., Any], arguments: Any, keywords: Any, context: Any) -> Any:
        module = context.module
        parameters = module.variables.get("params", {}) if context.method_name == "__call__" else {}
        for name, leaf in parameters.items():
            path = "/".join((*module.path, name))
            if isinstance(leaf, Mapping) or not selects(path):
                continue
            if name == "kernel" and isinstance(module, Conv | Dense):
                sums.setdefault(path, []).append(_covariance(_rows(module, arguments[0])))
            else:
                other_params[path] = leaf
        return call(*arguments, **keywords)

    with nn.intercept_methods(watch):
        model.apply(variables, image, tasks=tasks, train=False, train_batch_norm=False)
    return KernelInputs({path: jnp.stack(batches) for path, batches in sums.items()}, other_params)


def _rows(layer: Conv | Dense, x: Array | Gated) -> Float[Array, "groups cells inputs"]:
    x = x.outputs() if isinstance(x, Gated) else x
    if isinstance(layer, Dense):
        return x.reshape(1, -1, x.shape[-1])
    return rows(x, layer.kernel_size, stride=layer.stride, dilation=layer.dilation, depthwise=layer.features is None)


def rows(
    x: Float[Array, "batch height width channels"],
    kernel_size: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    depthwise: bool = False,
) -> Float[Array, "groups cells inputs"]:
    """The patches that a convolution reads, so that `rows(x, ...) @ by_group(kernel, groups)` is what it gives.

    Args:
        x: its input, padded here by `dilation * (kernel_size - 1) // 2` zeros on every side, as our convolutions do.
        kernel_size: of its square kernel.
        stride: between outputs, in cells of `x`.
        dilation: between taps, in cells of `x`.
        depthwise: each channel is a group by itself; otherwise there is one group.
    """
    height, width, channels = x.shape[1:]
    padding, reach = dilation * (kernel_size - 1) // 2, dilation * (kernel_size - 1)
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    below, right = height + 2 * padding - reach, width + 2 * padding - reach
    taps = [
        padded[:, top : top + below : stride, left : left + right : stride]
        for top in range(0, reach + 1, dilation)
        for left in range(0, reach + 1, dilation)
    ]
    patches = jnp.stack(taps, axis=-2)  # [batch, rows, columns, taps, channels]
    if depthwise:
        return jnp.moveaxis(patches, -1, 0).reshape(channels, -1, len(taps))
    return patches.reshape(1, -1, len(taps) * channels)


def by_group(kernel: Float[Array, "..."], groups: int) -> Float[Array, "groups inputs outputs"]:
    """Lays a kernel out as a matrix for each of its groups: of a depthwise one, for each channel."""
    if groups == 1:
        return kernel.reshape(1, -1, kernel.shape[-1])
    return jnp.moveaxis(kernel, -1, 0).reshape(groups, -1, 1)


def from_groups(matrices: Float[Array, "groups inputs outputs"], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """The inverse of `by_group`, for a kernel of some shape."""
    if matrices.shape[0] == 1:
        return matrices.reshape(shape)
    return jnp.moveaxis(matrices.reshape(shape[-1], *shape[:-1]), 0, -1)


def _covariance(x: Float[Array, "groups cells inputs"]) -> Float[Array, "groups inputs inputs"]:
    x = x.astype(jnp.float32)
    return jnp.einsum("gni,gnj->gij", x, x, precision=jax.lax.Precision.HIGHEST)
