"""Whole functions that are one operator, which runtimes fuse or run faster than the parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mtl_jax.export import onnx_enlarging as enlarging
from mtl_jax.export import onnx_layout as layout
from mtl_jax.export import onnx_ops as ops
from mtl_jax.export.onnx_graph import Graph, Tensor, Value, shape_of
from mtl_jax.export.onnx_rows import suppressed


def results(graph: Graph, equation: Any, inputs: Sequence[Value]) -> list[Value] | None:
    """Returns what a function comes to as operators; None where its equations have to be translated one by one."""
    name = equation.params.get("name")
    if name not in NAMED or not any(isinstance(each, Tensor) for each in inputs):
        return None
    found = NAMED[name](graph, equation, *inputs)
    return None if found is None else [found]


def _operator(op: str, **attributes: Any) -> Callable[..., Value | None]:
    def function(graph: Graph, equation: Any, x: Value) -> Value | None:
        del equation
        if not isinstance(x, Tensor) or x.dtype != np.float32:
            return None
        return graph.node(op, x.array, shape=x.array.shape, dtype=x.dtype, **attributes).seen(x.axes)

    return function


def _clipped(graph: Graph, equation: Any, x: Value, low: Value, high: Value) -> Value | None:
    """Cuts numbers off below and above."""
    bounds = [each for each in (low, high) if isinstance(each, np.ndarray) and each.size == 1]
    if len(bounds) != 2 or not isinstance(x, Tensor) or x.dtype != equation.outvars[0].aval.dtype:
        return None
    scalars = [each.reshape(()).astype(x.dtype) for each in bounds]
    return graph.node("Clip", x.array, *scalars, shape=x.array.shape, dtype=x.dtype).seen(x.axes)


def _remainder(graph: Graph, equation: Any, x: Value, y: Value) -> Value | None:
    """Of whole numbers, with the sign of the divisor."""
    del equation
    if not np.issubdtype(x.dtype, np.integer) or x.dtype != y.dtype or (len(x.shape) != len(y.shape) and y.shape):
        return None
    order = ops.order_of((x, y))
    arrays = [graph.arranged(each, order) if each.shape else each for each in (x, y)]
    shape = layout.broadcast(*(each.shape for each in arrays))
    return graph.node("Mod", *arrays, shape=shape, dtype=x.dtype).seen(order)


def _whole_quotient(graph: Graph, equation: Any, x: Value, y: Value) -> Value | None:
    """Of whole numbers, towards minus infinity: what is left after the remainder has gone divides exactly."""
    rest = _remainder(graph, equation, x, y)
    if not isinstance(rest, Tensor):
        return None
    x, y = (graph.arranged(each, rest.axes) if each.shape else each for each in (x, y))
    exact = graph.node("Sub", x, rest.array, shape=rest.array.shape, dtype=rest.dtype)
    return graph.node("Div", exact, y, shape=exact.shape, dtype=rest.dtype).seen(rest.axes)


def _resized(graph: Graph, equation: Any, x: Value) -> Value | None:
    """Bilinear, larger, corners not aligned, which is all that the networks ask for."""
    before, after = shape_of(equation.invars[0]), shape_of(equation.outvars[0])
    larger = all(new >= old for old, new in zip(before, after, strict=True))
    if len(after) != 4 or not larger or not isinstance(x, Tensor) or before[::3] != after[::3]:
        return None
    return enlarging.enlarged(graph, graph.full(x, before), after[1:3])


NAMED: dict[str, Callable[..., Value | None]] = {
    "_resize": _resized,
    "clip": _clipped,
    "floor_divide": _whole_quotient,
    "greedy_suppression": suppressed,
    "hard_sigmoid": _operator("HardSigmoid", alpha=1 / 6, beta=0.5),
    "hard_silu": _operator("HardSwish"),
    "remainder": _remainder,
    "softplus": _operator("Softplus"),
}
