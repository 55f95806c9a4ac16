"""The depthwise sums in pure JAX: as grouped convolutions, and as shifted multiply-adds."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from mtl_jax.models.bilinear import Pass


class Window(NamedTuple):
    """Static geometry of one convolution, in pixels; `size` is the height and width of its input."""

    size: tuple[int, int]
    kernel_size: tuple[int, int]
    stride: int
    dilation: int

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros on each side of the input, vertically and horizontally."""
        height, width = self.kernel_size
        return self.dilation * (height - 1) // 2, self.dilation * (width - 1) // 2

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        height, width = (
            (n + 2 * p - self.dilation * (k - 1) - 1) // self.stride + 1
            for n, p, k in zip(self.size, self.padding, self.kernel_size, strict=True)
        )
        return height, width


def grouped(pass_name: Pass, window: Window, first: Array, second: Array) -> Array:
    """Computes one of the three sums as XLA's grouped convolution, the quick form on accelerators."""
    (pad_h, pad_w), channels = window.padding, first.shape[-1]

    def convolve(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(window.stride, window.stride),
            padding=((pad_h, pad_h), (pad_w, pad_w)),
            rhs_dilation=(window.dilation, window.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
        )

    if pass_name == "forward":
        return convolve(first, second)
    if pass_name == "input_gradient":
        x = jax.ShapeDtypeStruct((first.shape[0], *window.size, channels), first.dtype)
        return jax.linear_transpose(lambda x: convolve(x, second), x)(first)[0]
    kernel = jax.ShapeDtypeStruct((*window.kernel_size, 1, channels), first.dtype)
    return jax.linear_transpose(lambda kernel: convolve(first, kernel), kernel)(second)[0]


def shifted(pass_name: Pass, window: Window, first: Array, second: Array) -> Array:
    """Computes one of the three sums tap by tap: XLA's CPU backend runs grouped convolutions 20 times slower."""
    if pass_name == "forward":
        return _shifted_forward(window, first, second)
    if pass_name == "input_gradient":
        return _shifted_input_gradient(window, first, second)
    return _shifted_kernel_gradient(window, first, second)


def _wide(x: Array) -> Array:
    """Sums of bfloat16 values lose digits unless they are accumulated in float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _shifted_views(window: Window, x: Array) -> list[Array]:
    """The inputs that each kernel tap sees, row by row of the kernel, each as large as the output."""
    (pad_h, pad_w), (out_h, out_w) = window.padding, window.output_size
    padded = jnp.pad(x, ((0, 0), (pad_h, pad_h), (pad_w, pad_w), (0, 0)))
    reach_h, reach_w = (out_h - 1) * window.stride + 1, (out_w - 1) * window.stride + 1
    corners = [
        (i * window.dilation, j * window.dilation)
        for i in range(window.kernel_size[0])
        for j in range(window.kernel_size[1])
    ]
    return [padded[:, i : i + reach_h : window.stride, j : j + reach_w : window.stride] for i, j in corners]


def _shifted_forward(window: Window, x: Array, kernel: Array) -> Array:
    taps = _wide(kernel).reshape(-1, 1, 1, 1, kernel.shape[-1])
    products = [view * tap for view, tap in zip(_shifted_views(window, x), taps, strict=True)]
    return functools.reduce(jnp.add, products).astype(x.dtype)


def _shifted_kernel_gradient(window: Window, x: Array, cotangent: Array) -> Array:
    """Sums all taps over each row in one reduction: XLA writes no product out, as it does to sum one tap alone."""
    g = _wide(cotangent)
    products = [view * g for view in _shifted_views(window, x)]
    zeros = [jnp.zeros((), g.dtype) for _ in products]
    row_sums = lax.reduce(products, zeros, lambda a, b: [p + q for p, q in zip(a, b, strict=True)], (2,))
    return jnp.stack(row_sums).sum(axis=(1, 2)).reshape(*window.kernel_size, 1, x.shape[-1]).astype(x.dtype)


def _shifted_input_gradient(window: Window, cotangent: Array, kernel: Array) -> Array:
    """Sums each phase of the stride on its own: no multiplications by the zeros of an upsampled cotangent."""
    stride, (pad_h, pad_w), (height, width) = window.stride, window.padding, window.size
    phases = [[_phase(window, cotangent, kernel, row, column) for column in range(stride)] for row in range(stride)]
    if stride == 1:
        full = phases[0][0]
    else:
        interleaved = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)
        batch, rows, _, columns, _, channels = interleaved.shape
        full = interleaved.reshape(batch, rows * stride, columns * stride, channels)
    return full[:, pad_h : pad_h + height, pad_w : pad_w + width]


def _phase(window: Window, cotangent: Array, kernel: Array, row: int, column: int) -> Array:
    """The gradient of the padded input at the pixels that lie (row, column) off whole strides."""
    stride, dilation = window.stride, window.dilation
    height, width = (-(-(n + 2 * p) // stride) for n, p in zip(window.size, window.padding, strict=True))
    # Input pixel q * stride + offset meets tap i at output q + (offset - i * dilation) / stride, where that is whole.
    before_h, before_w = (-(-dilation * (k - 1) // stride) for k in window.kernel_size)
    after_h, after_w = (max(n - out, 0) for n, out in zip((height, width), window.output_size, strict=True))
    padded = jnp.pad(cotangent, ((0, 0), (before_h, after_h), (before_w, after_w), (0, 0)))
    total = jnp.zeros((cotangent.shape[0], height, width, cotangent.shape[-1]), _wide(cotangent).dtype)
    for i in range(window.kernel_size[0]):
        for j in range(window.kernel_size[1]):
            (up, rest_h), (left, rest_w) = divmod(row - i * dilation, stride), divmod(column - j * dilation, stride)
            if rest_h == rest_w == 0:
                top, start = before_h + up, before_w + left
                total += padded[:, top : top + height, start : start + width] * _wide(kernel[None, i, j, :, :][:, None])
    return total.astype(cotangent.dtype)
