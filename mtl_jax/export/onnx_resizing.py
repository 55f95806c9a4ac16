"""Bilinear upsampling as matrix products, which onnxruntime computes faster than Resize; argmax over upsampled maps."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mtl_jax.export import onnx_layout as layout
from mtl_jax.export.onnx_folding import CHANNELS_FIRST
from mtl_jax.export.onnx_graph import Graph, Tensor, Value


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
    (batch, rows, columns, _), (height, width) = origin.x.shape, origin.size
    array = graph.stored_in_order(origin.x, CHANNELS_FIRST)
    channel = _candidates(graph, _possible_winners(graph, array))
    rows_of = graph.node("Unsqueeze", channel, np.array([2]), shape=(batch, 0, 1), dtype=np.int64)
    candidates = graph.node("GatherND", array, rows_of, shape=(batch, 0, rows, columns), dtype=x.dtype, batch_dims=1)
    # A length of 0 stands for an unknown one. With the channels first, runtimes compare whole rows of pixels at once.
    shapes = [(batch, 0, rows, width), (batch, 0, height, width)]
    columns_matrix = _interpolation_value(graph, columns, width, transposed=True)
    widened = graph.node("MatMul", candidates, columns_matrix, shape=shapes[0], dtype=x.dtype)
    rows_matrix = _interpolation_value(graph, rows, height)
    enlarged = graph.node("MatMul", rows_matrix, widened, shape=shapes[1], dtype=x.dtype)
    winner = graph.node("ArgMax", enlarged, shape=(batch, height, width), dtype=np.int64, axis=1, keepdims=0)
    winner = graph.reshape(winner, (batch, height * width))
    channel = graph.cast(channel, dtype)
    mask = graph.node("GatherElements", channel, winner, shape=(batch, height * width), dtype=dtype, axis=1)
    return graph.reshape(mask, (batch, height, width))


def _candidates(graph: Graph, is_candidate: Tensor) -> Tensor:
    """Returns the indices of the channels that are 1, of each image, padded to the largest count of the batch."""
    batch, channels = is_candidate.shape
    dtype = is_candidate.dtype
    count = graph.node("ReduceSum", is_candidate, np.array([1]), shape=(batch,), dtype=dtype, keepdims=0)
    largest_count = graph.node("ReduceMax", count, shape=(1,), dtype=dtype, axes=[0], keepdims=1)
    rank = np.arange(channels, 0, -1, dtype=np.float32)[None]
    shape, condition = is_candidate.shape, graph.cast(is_candidate, np.bool_)
    priority = graph.node("Where", condition, rank, rank - channels, shape=shape, dtype=np.float32)
    values = graph.node("TopK", priority, largest_count, shape=(batch, 0), dtype=np.float32, outputs=2)
    return Tensor(f"{values.name}.1", (batch, 0), np.dtype(np.int64))


def _possible_winners(graph: Graph, x: Tensor) -> Tensor:
    """Returns 1 for channels that can be the argmax somewhere in the upsampled map; `x` has the channels first."""
    batch, channels, rows, columns = x.shape
    cells, single_channel = (batch, channels, rows - 1, columns - 1), (batch, 1, rows - 1, columns - 1)

    def largest(x: Tensor) -> Tensor:
        return graph.node("MaxPool", x, shape=cells, dtype=x.dtype, kernel_shape=[2, 2])

    def negative(x: Tensor) -> Tensor:
        return graph.node("Neg", x, shape=x.shape, dtype=x.dtype)

    minimum = negative(largest(negative(x)))
    bound = graph.node("ReduceMax", minimum, shape=single_channel, dtype=x.dtype, axes=[1], keepdims=1)
    can_win = graph.node("GreaterOrEqual", largest(x), bound, shape=cells, dtype=np.bool_)
    flags = graph.cast(can_win, np.int64)
    return graph.node("ReduceMax", flags, shape=(batch, channels), dtype=np.int64, axes=[2, 3], keepdims=0)


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
