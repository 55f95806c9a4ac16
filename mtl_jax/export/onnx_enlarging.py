"""Bilinear interpolation as products with matrices, which onnxruntime computes faster than its own operator."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mtl_jax.export.onnx_folding import CHANNELS_FIRST
from mtl_jax.export.onnx_graph import Graph, Tensor


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
    array, across = graph.arranged(x, CHANNELS_FIRST), interpolation(columns, size[1]).T
    wide = graph.node("MatMul", array, across, shape=shapes[0], dtype=x.dtype)
    found = graph.node("MatMul", interpolation(rows, size[0]), wide, shape=shapes[1], dtype=x.dtype)
    graph.origins[found.name] = Enlarged(x, size)
    return found.seen(CHANNELS_FIRST)


def with_channels_last(graph: Graph, x: Tensor) -> Tensor:
    """Returns an enlarged map with the channels last, where the largest is found fastest; else the value as it is."""
    origin = graph.origins.get(x.name)
    if not isinstance(origin, Enlarged) or x.axes != CHANNELS_FIRST:
        return x
    (batch, rows, columns, channels), (height, width) = origin.x.shape, origin.size
    shapes = (batch, rows, width, channels), (batch, rows, width * channels), (batch, height, width * channels)
    wide = graph.node("MatMul", interpolation(columns, width), origin.x, shape=shapes[0], dtype=x.dtype)
    lines = graph.reshaped(wide, shapes[1])
    found = graph.node("MatMul", interpolation(rows, height), lines, shape=shapes[2], dtype=x.dtype)
    return graph.reshaped(found, (batch, height, width, channels))


def interpolation(old: int, new: int) -> np.ndarray:
    """Returns f32[new, old], which takes values at the centres of `old` cells to those of `new` smaller ones."""
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    below = np.floor(centre).astype(int)
    matrix = np.zeros((new, old), np.float32)
    for cell, weight in ((below, below + 1 - centre), (below + 1, centre - below)):
        np.add.at(matrix, (np.arange(new), np.clip(cell, 0, old - 1)), weight)
    return matrix
