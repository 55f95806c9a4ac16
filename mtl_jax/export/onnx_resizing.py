"""Bilinear upsampling as matrix products, which onnxruntime computes faster than Resize; argmax over upsampled maps."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mtl_jax.export import onnx_layout as layout
from mtl_jax.export.onnx_folding import CHANNELS_FIRST
from mtl_jax.export.onnx_graph import Graph, Tensor, Value

LARGEST_SHORT = 256  # number of channels whose indices fit in 8 bits


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

    Pixels of the square between four cells are their weighted means. Where one channel is the largest of all four
    cells, it is so in the whole square; only the other squares, at the edges of objects, are upsampled.

    Args:
        graph: receives the nodes.
        x: [batch, height, width, channels].
        dtype: integer type of the result.
    """
    origin = graph.origins.get(x.name)
    if not isinstance(origin, Resized) or x.axes != CHANNELS_FIRST:
        return None
    (batch, rows, columns, channels), (height, width) = origin.x.shape, origin.size
    if height % rows or width % columns:
        return None
    factors, squares = (height // rows, width // columns), (batch, 1, rows + 1, columns + 1)
    array, edges = graph.stored_in_order(origin.x, CHANNELS_FIRST), np.array([0, 0, 1, 1] * 2)
    cells = graph.node("Pad", array, edges, shape=(batch, channels, rows + 2, columns + 2), dtype=x.dtype, mode="edge")
    # Of five axes, OpenVINO stores each channel's cells together, and compares ten times as fast.
    cells = graph.reshape(cells, (batch, channels, 1, *cells.shape[2:]))
    of_cells = graph.node("ArgMax", cells, shape=(batch, *cells.shape[2:]), dtype=np.int64, axis=1, keepdims=0)
    position = _mixed_squares(graph, of_cells)

    pixels, short = factors[0] * factors[1], np.dtype(np.uint8 if channels <= LARGEST_SHORT else dtype)
    of_channel = np.repeat(np.arange(channels, dtype=short)[:, None], pixels, axis=1)
    of_first = graph.slice(of_cells, (0,) * 4, squares, (1,) * 4)
    masks = graph.node("Gather", of_channel, of_first, shape=(*squares, pixels), dtype=short, axis=0)
    winner = graph.cast(_square_argmax(graph, cells, position, factors), short)
    masks = graph.node("ScatterND", masks, position, winner, shape=masks.shape, dtype=short)
    return graph.cast(_in_rows(graph, masks, factors, origin.size), dtype)


def _mixed_squares(graph: Graph, of_cells: Tensor) -> Tensor:
    """Returns the squares between four cells that are not all of one channel.

    Args:
        graph: receives the nodes.
        of_cells: i64[batch, 1, rows, columns], a channel.

    Returns:
        i64[squares, 4], image, 0, row and column of each square's first cell.
    """
    batch, _, rows, columns = of_cells.shape
    shape = batch, 1, rows - 1, columns - 1
    largest, mean = (
        graph.node(pool, graph.cast(of_cells, np.float32), shape=shape, dtype=np.float32, kernel_shape=[2, 2])
        for pool in ("MaxPool", "AveragePool")
    )  # equal where all four cells are
    difference = graph.node("Sub", largest, mean, shape=shape, dtype=np.float32)
    # A length of 0 stands for an unknown one.
    mixed = graph.node("NonZero", difference, shape=(4, 0), dtype=np.int64)
    return graph.node("Transpose", mixed, shape=(0, 4), dtype=np.int64, perm=[1, 0])


def _square_argmax(graph: Graph, cells: Tensor, position: Tensor, factors: tuple[int, int]) -> Tensor:
    """Upsamples squares between four cells, and returns the argmax of their pixels.

    Args:
        graph: receives the nodes.
        cells: [batch, channels, 1, rows, columns].
        position: i64[squares, 4], image, 0, row and column of each square's first cell.
        factors: of the upsampling.

    Returns:
        i64[squares, pixels], the pixels row by row.
    """
    channels = cells.shape[1]
    weights = [_weights_between_cells(factor) for factor in factors]
    matrix = np.einsum("ay,bx->abyx", *weights).reshape(4, -1)
    corners = np.array([[0, 0, row, column] for row in (0, 1) for column in (0, 1)])
    first = graph.node("Unsqueeze", position, np.array([1]), shape=(0, 1, 4), dtype=np.int64)
    index = graph.node("Add", first, corners, shape=(0, 4, 4), dtype=np.int64)
    by_cell = cells.transpose([0, 2, 3, 4, 1])
    values = graph.node("GatherND", by_cell, index, shape=(0, 4, channels), dtype=cells.dtype)
    # With the pixels last, runtimes compare all pixels of a square at once.
    by_channel = graph.node("Transpose", values, shape=(0, channels, 4), dtype=cells.dtype, perm=[0, 2, 1])
    enlarged = graph.node("MatMul", by_channel, matrix, shape=(0, channels, matrix.shape[1]), dtype=cells.dtype)
    return graph.node("ArgMax", enlarged, shape=(0, matrix.shape[1]), dtype=np.int64, axis=1, keepdims=0)


def _in_rows(graph: Graph, masks: Tensor, factors: tuple[int, int], size: tuple[int, ...]) -> Value:
    """Arranges the pixels of squares in rows, and removes those outside of the map.

    Args:
        graph: receives the nodes.
        masks: [batch, 1, rows, columns, pixels], of the squares between cells.
        factors: height and width of a square.
        size: height and width of the map.

    Returns:
        [batch, height, width].
    """
    batch, _, rows, columns, _ = masks.shape
    by_row = graph.reshape(masks, (batch, rows, columns, *factors)).transpose([0, 1, 3, 2, 4])
    whole = graph.reshape(by_row, (batch, rows * factors[0], columns * factors[1]))
    start = [_in_first_cell(factor) for factor in factors]
    stop = start[0] + size[0], start[1] + size[1]
    return graph.slice(whole, (0, *start), (batch, *stop), (1, 1, 1))


def _weights_between_cells(factor: int) -> np.ndarray:
    """Returns f32[2, factor]: weights of two cells in the pixels from the centre of one to that of the next."""
    of_second = (np.arange(factor) - _in_first_cell(factor) + 0.5) / factor + 0.5
    return np.stack([1 - of_second, of_second]).astype(np.float32)


def _in_first_cell(factor: int) -> int:
    """Returns how many pixels of a square, along an axis, lie in its first cell; one in the cell's centre does."""
    return -(-factor // 2)


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
