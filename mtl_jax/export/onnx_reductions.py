"""What is added up, compared or sorted along axes, wherever these lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mtl_jax.export import onnx_enlarging as enlarging
from mtl_jax.export import onnx_folding as folding
from mtl_jax.export import onnx_layout as layout
from mtl_jax.export.onnx_graph import Graph, Tensor, Value, described


def summed(graph: Graph, equation: Any, x: Value) -> Value:
    """Adds up along some axes."""
    axes, (shape, dtype) = [int(axis) for axis in equation.params["axes"]], described(equation.outvars[0])
    if isinstance(x, Tensor):
        return folding.summed(graph, x, axes)
    return graph.node("ReduceSum", x, np.array(axes, np.int64), shape=shape, dtype=dtype, keepdims=0)


def reduced(op: str) -> Callable[..., Value]:
    """Returns what reduces some axes by an operator."""

    def reduced(graph: Graph, equation: Any, x: Tensor) -> Value:
        axes, (shape, dtype) = [int(axis) for axis in equation.params["axes"]], described(equation.outvars[0])
        order = layout.without(x.axes, axes)
        places, array = sorted(x.axes[axis] for axis in axes), x.array
        result_shape = layout.stored(shape, order)
        return graph.node(op, array, shape=result_shape, dtype=dtype, axes=places, keepdims=0).seen(order)

    return reduced


def argmax(graph: Graph, equation: Any, x: Tensor) -> Value:
    """Finds the place of the largest along an axis."""
    (axis,), (shape, dtype) = equation.params["axes"], described(equation.outvars[0])
    if int(axis) == len(x.shape) - 1 and (largest := enlarging.argmax(graph, x, dtype)) is not None:
        return largest
    order = layout.without(x.axes, [int(axis)])
    result_shape, place = layout.stored(shape, order), x.axes[int(axis)]
    index = graph.node("ArgMax", x.array, shape=result_shape, dtype=np.int64, axis=place, keepdims=0)
    return graph.cast(index, dtype).seen(order)


def top_k(graph: Graph, equation: Any, x: Value) -> list[Value]:
    """Returns the largest along an axis, and their places."""
    (shape, dtype), (_, index_dtype) = map(described, equation.outvars)
    count = np.array([equation.params["k"]], np.int64)
    axis = equation.params.get("axis", len(shape) - 1)
    values = graph.node("TopK", x, count, shape=shape, dtype=dtype, outputs=2, axis=axis)
    index = Tensor(f"{values.name}.1", shape, np.dtype(np.int64))
    return [values, graph.cast(index, index_dtype)]


def cumulative_sum(graph: Graph, equation: Any, x: Value) -> Value:
    """Adds up what comes before each, along an axis."""
    params, (shape, dtype) = equation.params, described(equation.outvars[0])
    return graph.node(
        "CumSum", x, np.array(params["axis"], np.int64), shape=shape, dtype=dtype, reverse=int(params["reverse"])
    )


def any_true(graph: Graph, equation: Any, x: Value) -> Value:
    """Says whether any is true along some axes."""
    return graph.any(x, [int(axis) for axis in equation.params["axes"]])
