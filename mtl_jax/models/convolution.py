"""Dense convolutions, 1x1 and larger, in the form that is fastest where they run."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mtl_jax.kernels import cpu_kernels
from mtl_jax.models.bilinear import Pass, bilinear

# Fewer cells than this repay no call of their own: XLA copies a small transposed operand quickly.
POINTWISE_MIN_CELLS = 512
WINOGRAD_MIN_CHANNELS = 16  # with fewer, the transforms outweigh what they save
# Toom-Cook interpolation of F(4, 3) at the points 0, 1, -1, 2, -2 and infinity: 3 taps -> 6 factors.
WINOGRAD_KERNEL = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)


def pointwise_conv(
    x: Float[Array, "batch height width channels"], kernel: Float[Array, "channels features"]
) -> Float[Array, "batch height width features"]:
    """A 1x1 convolution as a matrix product: XLA's CPU backend runs it about twice as fast.

    Args:
        x: Features.
        kernel: Weights.

    Returns:
        The convolved features.
    """
    return _pointwise(None, x, kernel)


def dense_conv(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "size size channels features"],
    *,
    stride: int = 1,
    dilation: int = 1,
) -> Float[Array, "batch out_height out_width features"]:
    """A full convolution, padded by `dilation * (size - 1) / 2` on every side, as PyTorch does.

    On CPUs with the compiled kernels, 3x3 at stride 1 runs by Winograd's algorithm in float32, which agrees with the
    plain sum to about 1e-5 of the largest result.

    Args:
        x: Features.
        kernel: Weights, of odd size.
        stride: Step between outputs, in cells of `x`.
        dilation: Step between the kernel's taps, in cells of `x`.

    Returns:
        The convolved features.

    References:
        Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks", 2016.
    """
    if runs_by_winograd(x, kernel, stride=stride, dilation=dilation):
        return _winograd(None, x, kernel)
    padding = dilation * (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def runs_by_winograd(x: Array, kernel: Array, *, stride: int, dilation: int) -> bool:
    """Whether a convolution, of arguments as in `dense_conv`, is one that Winograd's algorithm computes here."""
    if kernel.shape[:2] != (3, 3) or stride != 1 or dilation != 1:
        return False
    channels = (kernel.shape[2], kernel.shape[3])
    return min(channels) >= WINOGRAD_MIN_CHANNELS and _compiled(x, kernel, channels)


def _compiled(first: Array, second: Array, channels: tuple[int, int]) -> bool:
    """Whether the compiled kernels take these operands and were built here."""
    fits = all(n % cpu_kernels.LANES == 0 for n in channels)
    single = first.dtype == second.dtype == jnp.float32
    return fits and single and cpu_kernels.in_use()


def _run_pointwise(pass_name: Pass, geometry: Any, first: Array, second: Array) -> Array:
    del geometry
    if pass_name == "forward":
        return jnp.einsum("bhwi,io->bhwo", first, second)
    if pass_name == "input_gradient":
        return jnp.einsum("bhwo,io->bhwi", first, second)
    batch, height, width, channels = first.shape
    cells, features = height * width, second.shape[-1]
    if cells < POINTWISE_MIN_CELLS or not _compiled(first, second, (channels, features)):
        return jnp.einsum("bhwi,bhwo->io", first, second)
    kernel = cpu_kernels.Kernel("pointwise_kernel_gradient", (channels, features), (True, True))
    flat = (first.reshape(batch, cells, channels), second.reshape(batch, cells, features))
    return _over_examples(cpu_kernels.call(kernel, *flat))


def _run_winograd(pass_name: Pass, geometry: Any, first: Array, second: Array) -> Array:
    del geometry
    if pass_name == "kernel_gradient":
        shape = (3, 3, first.shape[-1], second.shape[-1])
        kernel = cpu_kernels.Kernel("winograd_kernel_gradient", shape, (True, True))
        return _over_examples(cpu_kernels.call(kernel, first, second))
    if pass_name == "input_gradient":
        second = second[::-1, ::-1].swapaxes(2, 3)  # the transposed sum is a sum with the flipped kernel
    shape = (*first.shape[1:3], second.shape[-1])
    call = cpu_kernels.Kernel("winograd_forward", shape, (True, False))
    return cpu_kernels.call(call, first, winograd_kernel(second))


def winograd_kernel(kernel: Float[Array, "3 3 channels features"]) -> Float[Array, "36 channels features"]:
    """Returns a kernel as Winograd's algorithm multiplies by it."""
    transform = jnp.asarray(np.kron(WINOGRAD_KERNEL, WINOGRAD_KERNEL), jnp.float32)
    channels, features = kernel.shape[2:]
    return (transform @ kernel.reshape(9, channels * features)).reshape(36, channels, features)


def _over_examples(per_example: Array) -> Array:
    """Adds up the examples' gradients, as a product with ones: XLA's CPU backend sums over a leading axis slowly."""
    flat = per_example.reshape(per_example.shape[0], -1)
    return (jnp.ones((1, per_example.shape[0])) @ flat).reshape(per_example.shape[1:])


_pointwise = bilinear(_run_pointwise)
_winograd = bilinear(_run_winograd)
