"""Bilinear interpolation as products with matrices, which onnxruntime computes faster than its own operator."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mtl_jax.export import onnx_layout as layout
from mtl_jax.export.onnx_folding import CHANNELS_FIRST
from mtl_jax.export.onnx_graph import Graph, Tensor, Value


class Enlarged(NamedTuple):
    """What has been enlarged, and to which height and width."""

    x: Any
    size: tuple[int, ...]


def enlarged(graph: Graph, x: Any, size: tuple[int, ...]) -> Tensor:
    """Enlarges a map, with the channels first, and remembers it for who would read it with the channels last.

    Args:
        graph: gets the nodes.
        x: batch, height, width, channels.
        size: the new height and width.
    """
    batch, rows, columns, channels = x.shape
    shapes = (batch, channels, rows, size[1]), (batch, channels, *size)
    array, across = graph.arranged(x, CHANNELS_FIRST), _weights(graph, columns, size[1], transposed=True)
    wide = graph.node("MatMul", array, across, shape=shapes[0], dtype=x.dtype)
    result = graph.node("MatMul", _weights(graph, rows, size[0]), wide, shape=shapes[1], dtype=x.dtype)
    graph.origins[result.name] = Enlarged(x, size)
    return result.seen(CHANNELS_FIRST)


def argmax(graph: Graph, x: Any, dtype: Any) -> Tensor | None:
    """Returns the channel that is largest at each place of an enlarged map; None where a value is no such map.

    Between four cells no channel exceeds its largest value in them, nor falls below its least. One that nowhere reaches
    the best of the least values is left out before anything is enlarged: of the classes, few are in an image.

    Args:
        graph: gets the nodes.
        x: batch, height, width, channels.
        dtype: of the result, whole numbers.
    """
    origin = graph.origins.get(x.name)
    if not isinstance(origin, Enlarged) or x.axes != CHANNELS_FIRST or min(map(layout.least, origin.x.shape[1:3])) < 2:
        return None
    (batch, rows, columns, _), (height, width) = origin.x.shape, origin.size
    array = graph.arranged(origin.x, CHANNELS_FIRST)
    number = _candidates(graph, _somewhere_largest(graph, array))
    rows_of = graph.node("Unsqueeze", number, np.array([2]), shape=(batch, 0, 1), dtype=np.int64)
    candidates = graph.node("GatherND", array, rows_of, shape=(batch, 0, rows, columns), dtype=x.dtype, batch_dims=1)
    # With the channels last, where the largest is found fastest; a length of 0 stands for one that is not known.
    candidates = graph.node("Transpose", candidates, shape=(batch, rows, columns, 0), dtype=x.dtype, perm=[0, 2, 3, 1])
    across, down = _weights(graph, columns, width), _weights(graph, rows, height)
    widened = graph.node("MatMul", across, candidates, shape=(batch, rows, width, 0), dtype=x.dtype)
    lines = _with_lengths(graph, widened, (0, 0, -1))
    enlarged_cells = graph.node("MatMul", down, lines, shape=(batch, height, 0), dtype=x.dtype)
    pixels = _with_lengths(graph, enlarged_cells, (0, height * width, -1))
    place = graph.node("ArgMax", pixels, shape=(batch, height * width), dtype=np.int64, axis=2, keepdims=0)
    number = graph.cast(number, dtype)
    mask = graph.node("GatherElements", number, place, shape=(batch, height * width), dtype=dtype, axis=1)
    return graph.reshaped(mask, (batch, height, width))


def _candidates(graph: Graph, is_candidate: Tensor) -> Tensor:
    """Returns the numbers of the channels that are true, in their order, of each image as many as of any."""
    batch, channels = is_candidate.shape
    counted, dtype = graph.cast(is_candidate, np.int32), np.dtype(np.int64)
    count = graph.node("ReduceSum", counted, np.array([1]), shape=(batch,), dtype=np.int32, keepdims=0)
    most = graph.node("ReduceMax", count, shape=(1,), dtype=np.int32, axes=[0], keepdims=1)
    rank = np.arange(channels, 0, -1, dtype=np.float32)[None]
    first = graph.node("Where", is_candidate, rank, rank - channels, shape=is_candidate.shape, dtype=np.float32)
    best = graph.node("TopK", first, graph.cast(most, dtype), shape=(batch, 0), dtype=np.float32, outputs=2)
    return Tensor(f"{best.name}.1", (batch, 0), dtype)


def _somewhere_largest(graph: Graph, x: Tensor) -> Tensor:
    """Returns which channels of each map, with the channels first, may be the largest somewhere in it, enlarged."""
    batch, channels, rows, columns = x.shape
    cells, one = (batch, channels, rows - 1, columns - 1), (batch, 1, rows - 1, columns - 1)

    def largest(x: Tensor) -> Tensor:
        return graph.node("MaxPool", x, shape=cells, dtype=x.dtype, kernel_shape=[2, 2])

    def negative(x: Tensor) -> Tensor:
        return graph.node("Neg", x, shape=x.shape, dtype=x.dtype)

    least = negative(largest(negative(x)))
    best = graph.node("ReduceMax", least, shape=one, dtype=x.dtype, axes=[1], keepdims=1)
    reached = graph.node("GreaterOrEqual", largest(x), best, shape=cells, dtype=np.bool_)
    return graph.any(reached, (2, 3))


def _with_lengths(graph: Graph, x: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Gives an array other axes: 0 keeps the length, -1 is what is left."""
    return graph.node("Reshape", x, graph.sizes(lengths), shape=lengths, dtype=x.dtype)


def _weights(graph: Graph, old: int, new: int, *, transposed: bool = False) -> Value:
    """Returns `interpolation`; of a length that is known when the model runs, a matrix of ones and zeros, enlarged."""
    if layout.known(old, new):
        return interpolation(old, new).T if transposed else interpolation(old, new)
    end = graph.reshaped(graph.length(old), ())
    row: Any = graph.node("Range", np.array(0), end, np.array(1), shape=(old,), dtype=np.int64)
    same = graph.node("Equal", row, graph.reshaped(row, (old, 1)), shape=(old, old), dtype=np.bool_)
    scales = np.array([1, new // old] if transposed else [new // old, 1], np.float32)
    shape, nothing = (old, new) if transposed else (new, old), np.zeros(0, np.float32)
    diagonal = graph.cast(same, np.float32)
    return graph.node("Resize", diagonal, nothing, scales, shape=shape, dtype=np.float32, mode="linear")


def interpolation(old: int, new: int) -> np.ndarray:
    """Returns f32[new, old], which takes values at the centres of `old` cells to those of `new` smaller ones."""
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    below = np.floor(centre).astype(int)
    matrix = np.zeros((new, old), np.float32)
    for cell, weight in ((below, below + 1 - centre), (below + 1, centre - below)):
        np.add.at(matrix, (np.arange(new), np.clip(cell, 0, old - 1)), weight)
    return matrix
