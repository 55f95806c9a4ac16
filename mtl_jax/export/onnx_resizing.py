"""Bilinear upsampling as matrix products, which onnxruntime computes faster than Resize; argmax over upsampled maps."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mtl_jax.export import onnx_layout as layout
from mtl_jax.export.onnx_folding import CHANNELS_FIRST
from mtl_jax.export.onnx_graph import Graph, Tensor, Value

BAND_ROWS = (8, 7, 6, 5, 4)  # of a map that is upsampled band by band; the first that divides its rows


class Resized(NamedTuple):
    """A map before it is upsampled, and its new height and width."""

    x: Any
    size: tuple[int, ...]


def resize(graph: Graph, x: Any, size: tuple[int, ...]) -> Tensor:
    """Upsamples a map, stored with the channels first, and records it for `resized_argmax`.

    Args:
        graph: receives the nodes.
        x: [batch, height, width, channels].
        size: new height and width.
    """
    batch, rows, columns, channels = x.shape
    shapes = (batch, channels, rows, size[1]), (batch, channels, *size)
    array, columns_matrix = (
        graph.stored_in_order(x, CHANNELS_FIRST),
        _interpolation_value(graph, columns, size[1], transposed=True),
    )
    wide = graph.node("MatMul", array, columns_matrix, shape=shapes[0], dtype=x.dtype)
    result = graph.node("MatMul", _interpolation_value(graph, rows, size[0]), wide, shape=shapes[1], dtype=x.dtype)
    graph.origins[result.name] = Resized(x, size)
    return result.transpose(CHANNELS_FIRST)


def resized_argmax(graph: Graph, x: Any, dtype: Any) -> Tensor | None:
    """Returns the argmax over the channels of an upsampled map; None where a value is no such map.

    Between four cells, an interpolated channel stays between its minimum and maximum of the four. A channel whose
    maximum is everywhere below the largest minimum of all channels cannot win and is removed before the upsampling: few
    of the classes are in an image.

    Args:
        graph: receives the nodes.
        x: [batch, height, width, channels].
        dtype: integer type of the result.
    """
    origin = graph.origins.get(x.name)
    if not isinstance(origin, Resized) or x.axes != CHANNELS_FIRST or min(map(layout.minimum, origin.x.shape[1:3])) < 2:
        return None
    (batch, _, columns, _), (height, width) = origin.x.shape, origin.size
    array, rows_matrix = _in_bands(graph, graph.stored_in_order(origin.x, CHANNELS_FIRST), height)
    (maps, _, rows, _), (new_rows, _) = array.shape, rows_matrix.shape
    channel = _candidates(graph, array)
    index = graph.node("Unsqueeze", channel, np.array([2]), shape=(maps, 0, 1), dtype=np.int64)
    candidates = graph.node("GatherND", array, index, shape=(maps, 0, rows, columns), dtype=x.dtype, batch_dims=1)
    # A length of 0 stands for an unknown one. With the channels first, runtimes compare whole rows of pixels at once.
    shapes = [(maps, 0, rows, width), (maps, 0, new_rows, width)]
    columns_matrix = _interpolation_value(graph, columns, width, transposed=True)
    widened = graph.node("MatMul", candidates, columns_matrix, shape=shapes[0], dtype=x.dtype)
    enlarged = graph.node("MatMul", rows_matrix, widened, shape=shapes[1], dtype=x.dtype)
    winner = graph.node("ArgMax", enlarged, shape=(maps, new_rows, width), dtype=np.int64, axis=1, keepdims=0)
    winner, channel = graph.reshape(winner, (maps, new_rows * width)), graph.cast(channel, dtype)
    mask = graph.node("GatherElements", channel, winner, shape=winner.shape, dtype=dtype, axis=1)
    return graph.reshape(mask, (batch, height, width))


def _in_bands(graph: Graph, x: Tensor, height: int) -> tuple[Tensor, Value]:
    """Divides maps of a static size into bands of a few rows, each with the rows before and after it.

    A band has fewer channels that can win than a map, and its upsampling is a product with a smaller matrix.

    Args:
        graph: receives the nodes.
        x: [batch, channels, rows, columns].
        height: new height.

    Returns:
        The bands of all maps as a batch, or the maps, and the matrix that upsamples their rows.
    """
    batch, channels, rows, columns = x.shape
    is_static = layout.is_static(rows, height) and height % rows == 0
    length = next((length for length in BAND_ROWS if is_static and rows % length == 0), rows)
    if length == rows:
        return x, _interpolation_value(graph, rows, height)
    index = np.clip(np.arange(0, rows, length)[:, None] + np.arange(-1, length + 1), 0, rows - 1)
    (count, taken), factor = index.shape, height // rows
    gathered = graph.node("Gather", x, index, shape=(batch, channels, count, taken, columns), dtype=x.dtype, axis=2)
    shape, order = (batch, count, channels, taken, columns), [0, 2, 1, 3, 4]
    bands = graph.node("Transpose", gathered, shape=shape, dtype=x.dtype, perm=order)
    matrix = interpolation_matrix(taken, taken * factor)[factor:-factor]
    return graph.reshape(bands, (batch * count, channels, taken, columns)), matrix


def _candidates(graph: Graph, x: Tensor) -> Tensor:
    """Returns the channels that can be the argmax somewhere in an upsampled map, padded to the largest number of them.

    Args:
        graph: receives the nodes.
        x: maps, the channels first.

    Returns:
        i64[maps, candidates], the channels of each map in ascending order, and others behind them.
    """
    maps, channels, rows, columns = x.shape
    cells, single_channel = (maps, channels, rows - 1, columns - 1), (maps, 1, rows - 1, columns - 1)

    def largest(x: Tensor) -> Tensor:
        return graph.node("MaxPool", x, shape=cells, dtype=x.dtype, kernel_shape=[2, 2])

    def negative(x: Tensor) -> Tensor:
        return graph.node("Neg", x, shape=x.shape, dtype=x.dtype)

    lowest = largest(negative(x))  # negative
    bound = negative(graph.node("ReduceMin", lowest, shape=single_channel, dtype=x.dtype, axes=[1], keepdims=1))
    can_win = graph.node("GreaterOrEqual", largest(x), bound, shape=cells, dtype=np.bool_)
    # Above 0 for candidates, the first of them first; TopK alone does not order equal values in every runtime.
    rank, dtype = np.arange(channels, 0, -1, dtype=np.int64).reshape(1, -1, 1, 1), np.int64
    ranks = graph.node("Where", can_win, rank, rank - channels, shape=cells, dtype=dtype)
    priority = graph.node("ReduceMax", ranks, shape=(maps, channels), dtype=dtype, axes=[2, 3], keepdims=0)
    flags = graph.node("Clip", priority, np.array(0), np.array(1), shape=(maps, channels), dtype=dtype)
    count = graph.node("ReduceSum", flags, np.array([1]), shape=(maps,), dtype=dtype, keepdims=0)
    largest_count = graph.node("ReduceMax", count, shape=(1,), dtype=dtype, axes=[0], keepdims=1)
    values = graph.node("TopK", priority, largest_count, shape=(maps, 0), dtype=dtype, outputs=2)
    return Tensor(f"{values.name}.1", (maps, 0), np.dtype(dtype))


def _interpolation_value(graph: Graph, old: int, new: int, *, transposed: bool = False) -> Value:
    """Returns `interpolation_matrix`; for dynamic lengths, an identity matrix that the model upsamples when it runs."""
    if layout.is_static(old, new):
        return interpolation_matrix(old, new).T if transposed else interpolation_matrix(old, new)
    end = graph.reshape(graph.length_value(old), ())
    index: Any = graph.node("Range", np.array(0), end, np.array(1), shape=(old,), dtype=np.int64)
    identity = graph.node("Equal", index, graph.reshape(index, (old, 1)), shape=(old, old), dtype=np.bool_)
    scales = np.array([1, new // old] if transposed else [new // old, 1], np.float32)
    shape, no_region = (old, new) if transposed else (new, old), np.zeros(0, np.float32)
    diagonal = graph.cast(identity, np.float32)
    return graph.node("Resize", diagonal, no_region, scales, shape=shape, dtype=np.float32, mode="linear")


def interpolation_matrix(old: int, new: int) -> np.ndarray:
    """Returns f32[new, old]: linear interpolation from the centres of `old` cells to those of `new` smaller cells."""
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    below = np.floor(centre).astype(int)
    matrix = np.zeros((new, old), np.float32)
    for cell, weight in ((below, below + 1 - centre), (below + 1, centre - below)):
        np.add.at(matrix, (np.arange(new), np.clip(cell, 0, old - 1)), weight)
    return matrix
