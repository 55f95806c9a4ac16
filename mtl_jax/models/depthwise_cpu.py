"""The compiled CPU form of the depthwise convolution."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from mtl_jax.kernels import cpu_kernels
from mtl_jax.models.bilinear import Pass
from mtl_jax.models.depthwise_forms import Window


def supports(window: Window, dtype: jnp.dtype) -> bool:
    """Whether a kernel of this geometry was compiled; float64 would lose digits in its float32 sums."""
    square = window.kernel_size in ((3, 3), (5, 5))
    return square and window.stride * window.dilation in (1, 2) and dtype != jnp.float64


def run(pass_name: Pass, window: Window, first: Array, second: Array) -> Array:
    """Computes one of the three sums in float32, whatever the floating-point type of its inputs."""
    channels = first.shape[-1]
    pad = [(0, 0)] * 3 + [(0, -channels % cpu_kernels.LANES)]
    a, b = (jnp.pad(array.astype(jnp.float32), pad) for array in (first, second))
    sizes = {"forward": window.output_size, "input_gradient": window.size, "kernel_gradient": window.kernel_size}
    shape = (*sizes[pass_name], a.shape[-1])
    if pass_name == "input_gradient" and window.stride == 1:
        pass_name, b = "forward", b[::-1, ::-1]  # the transposed sum of a symmetric window is a sum again
    kernel = cpu_kernels.Kernel(
        f"depthwise_{pass_name}",
        shape,
        (True, pass_name == "kernel_gradient"),
        (("kernel_size", window.kernel_size[0]), ("stride", window.stride), ("dilation", window.dilation)),
    )
    result = cpu_kernels.call(kernel, a, b)[..., :channels]
    if pass_name == "kernel_gradient":  # one for each example: sharded or mapped batches stay apart until here
        result = result.sum(axis=0)[:, :, None, :]
    return result.astype(first.dtype)
