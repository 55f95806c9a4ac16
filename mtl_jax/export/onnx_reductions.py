"""Reductions, argmax, top-k and cumulative sums, for any storage order of the axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mtl_jax.export import onnx_folding as folding
from mtl_jax.export import onnx_layout as layout
from mtl_jax.export import onnx_resizing as resizing
from mtl_jax.export.onnx_graph import Graph, Tensor, Value, shape_and_dtype


def reduce_sum(graph: Graph, equation: Any, x: Value) -> Value:
    """Sums over axes."""
    axes, (shape, dtype) = [int(axis) for axis in equation.params["axes"]], shape_and_dtype(equation.outvars[0])
    if isinstance(x, Tensor):
        return folding.add_sum(graph, x, axes)
    return graph.node("ReduceSum", x, np.array(axes, np.int64), shape=shape, dtype=dtype, keepdims=0)


def reduction(op: str) -> Callable[..., Value]:
    """Returns the translation of a reduction by an ONNX operator."""

    def reduce(graph: Graph, equation: Any, x: Tensor) -> Value:
        axes, (shape, dtype) = [int(axis) for axis in equation.params["axes"]], shape_and_dtype(equation.outvars[0])
        order = layout.remove_axes(x.axes, axes)
        stored_axes, array = sorted(x.axes[axis] for axis in axes), x.array
        result_shape = layout.stored_shape(shape, order)
        return graph.node(op, array, shape=result_shape, dtype=dtype, axes=stored_axes, keepdims=0).transpose(order)

    return reduce


def argmax(graph: Graph, equation: Any, x: Tensor) -> Value:
    """Returns the index of the maximum along an axis."""
    (axis,), (shape, dtype) = equation.params["axes"], shape_and_dtype(equation.outvars[0])
    if int(axis) == len(x.shape) - 1 and (largest := resizing.resized_argmax(graph, x, dtype)) is not None:
        return largest
    order = layout.remove_axes(x.axes, [int(axis)])
    result_shape, stored_axis = layout.stored_shape(shape, order), x.axes[int(axis)]
    index = graph.node("ArgMax", x.array, shape=result_shape, dtype=np.int64, axis=stored_axis, keepdims=0)
    return graph.cast(index, dtype).transpose(order)


def top_k(graph: Graph, equation: Any, x: Value) -> list[Value]:
    """Returns the largest entries along an axis and their indices."""
    (shape, dtype), (_, index_dtype) = map(shape_and_dtype, equation.outvars)
    count = np.array([equation.params["k"]], np.int64)
    axis = equation.params.get("axis", len(shape) - 1)
    values = graph.node("TopK", x, count, shape=shape, dtype=dtype, outputs=2, axis=axis)
    index = Tensor(f"{values.name}.1", shape, np.dtype(np.int64))
    return [values, graph.cast(index, index_dtype)]


def cumulative_sum(graph: Graph, equation: Any, x: Value) -> Value:
    """Returns the cumulative sum along an axis."""
    params, (shape, dtype) = equation.params, shape_and_dtype(equation.outvars[0])
    return graph.node(
        "CumSum", x, np.array(params["axis"], np.int64), shape=shape, dtype=dtype, reverse=int(params["reverse"])
    )


def reduce_or(graph: Graph, equation: Any, x: Value) -> Value:
    """Reduces axes by a logical or."""
    return graph.any(x, [int(axis) for axis in equation.params["axes"]])
