"""Resampling for dense tasks: from the head's cells to pixels, and on to the pixels of the original image."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from mtl_jax.errors import UserError
from mtl_jax.kernels import cpu_kernels
from mtl_jax.tasks.base import Geometry, ImageSize, Prediction, one_level


def check_strides(kind: str, strides: tuple[int, ...], loss_stride: int) -> None:
    """Refuses what no dense task can read or compare.

    Raises:
        UserError: `strides` is not one level, or `loss_stride` does not divide it.
    """
    stride = one_level(kind, strides)
    if stride % loss_stride:
        raise UserError(f"loss_stride: expected loss_stride that divides {stride}, found {loss_stride}; use 1, 2 or 4")


def enlarge(cells: Float[Array, "b h w c"], factor: int) -> Float[Array, "b _ _ c"]:
    """Bilinear interpolation, corners not aligned: a cell's value sits at its centre."""
    if factor == 1:
        return cells
    if cells.dtype == jnp.float32 and factor % 2 == 0 and cpu_kernels.in_use():
        return _enlarge(factor, cells)
    return _resize(factor, cells)


def _resize(factor: int, cells: Array) -> Array:
    batch, rows, columns, channels = cells.shape
    return jax.image.resize(cells, (batch, rows * factor, columns * factor, channels), "linear")


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _enlarge(factor: int, cells: Array) -> Array:
    size = cells.shape[1] * factor, cells.shape[2] * factor, cells.shape[3]
    return cpu_kernels.call(cpu_kernels.Kernel("enlarge", size, (True,), (("factor", factor),)), cells)


_enlarge.defvjp(
    lambda factor, cells: jax.vjp(partial(_resize, factor), cells),
    lambda factor, backward, g: backward(g),
)


def enlarged_argmax(cells: Float[Array, "b h w c"], factor: int) -> Int[Array, "b _ _"]:
    """The channel that is largest at each point of `enlarge`, the first of equals."""
    if factor % cpu_kernels.LANES or not cpu_kernels.in_use():
        return jnp.argmax(enlarge(cells, factor), axis=-1).astype(jnp.int32)
    size = cells.shape[1] * factor, cells.shape[2] * factor
    kernel = cpu_kernels.Kernel("enlarged_argmax", size, (True,), (("factor", factor),))
    return cpu_kernels.call(kernel, cells).astype(jnp.int32)


def every_nth(
    labels: Shaped[Array, "batch height width"], covered_size: ImageSize, loss_stride: int, *, missing: int | float
) -> Shaped[Array, "batch rows columns"]:
    """Takes the label of one pixel in `loss_stride` each way.

    Args:
        labels: of every pixel.
        covered_size: rows and columns of pixels that whole cells cover; what the image lacks of them is `missing`.
        loss_stride: px.
        missing: the value of a pixel without a label.
    """
    below, right = covered_size[0] - labels.shape[1], covered_size[1] - labels.shape[2]
    padded = jnp.pad(labels, ((0, 0), (0, below), (0, right)), constant_values=missing)
    return padded[:, loss_stride // 2 :: loss_stride, loss_stride // 2 :: loss_stride]


def repeated(cells: Shaped[Array, "b h w"], stride: int, image_size: ImageSize) -> Shaped[Array, "b rows columns"]:
    """The value of its cell for every pixel of the image."""
    rows, columns = image_size
    return cells.repeat(stride, axis=1).repeat(stride, axis=2)[:, :rows, :columns]


def check_size(name: str, noun: str, truth: Shaped[np.ndarray, "..."], geometry: Geometry) -> None:
    """Refuses labels of another size than their image's.

    Raises:
        UserError: names the sizes.
    """
    if truth.shape != (geometry.height, geometry.width):
        raise UserError(
            f"task {name!r}: expected a {noun} of {geometry.height} x {geometry.width} px like its image, found "
            f"{truth.shape}; correct the dataset"
        )


def at_original(
    prediction: Shaped[np.ndarray, "rows columns"], geometry: Geometry
) -> Shaped[np.ndarray, "height width"]:
    """Looks up, for every pixel of the original, the input's pixel that holds its centre."""
    rows, columns = prediction.shape
    y = np.floor((np.arange(geometry.height) + 0.5) * geometry.scale_y + geometry.offset_y).astype(int)
    x = np.floor((np.arange(geometry.width) + 0.5) * geometry.scale_x + geometry.offset_x).astype(int)
    return prediction[np.ix_(np.clip(y, 0, rows - 1), np.clip(x, 0, columns - 1))]


def fields_at_original(prediction: Prediction, geometry: Geometry) -> dict[str, Shaped[np.ndarray, "height width"]]:
    """Looks every map of one image's prediction up for the pixels of the original."""
    return {name: at_original(np.asarray(value), geometry) for name, value in prediction.items()}
