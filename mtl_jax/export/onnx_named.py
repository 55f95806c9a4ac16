"""Whole functions that are one operator, which runtimes fuse or run faster than the parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mtl_jax.export import onnx_enlarging as enlarging
from mtl_jax.export import onnx_layout as layout
from mtl_jax.export import onnx_ops as ops
from mtl_jax.export.onnx_graph import Graph, Tensor, Value, shape_of
from mtl_jax.export.onnx_rows import suppressed
from mtl_jax.export.rounding import whole_scale


def results(graph: Graph, equation: Any, inputs: Sequence[Value]) -> list[Value] | None:
    """Returns what a function comes to as operators; None where its equations have to be translated one by one."""
    name = equation.params.get("name")
    if name not in NAMED or not any(isinstance(value, Tensor) for value in inputs):
        return None
    result = NAMED[name](graph, equation, *inputs)
    return None if result is None else [result]


def _operator(op: str, **attributes: Any) -> Callable[..., Value | None]:
    def function(graph: Graph, equation: Any, x: Value) -> Value | None:
        del equation
        if not isinstance(x, Tensor) or x.dtype != np.float32:
            return None
        return graph.node(op, x.array, shape=x.array.shape, dtype=x.dtype, **attributes).seen(x.axes)

    return function


def _clipped(graph: Graph, equation: Any, x: Value, low: Value, high: Value) -> Value | None:
    """Cuts numbers off below and above."""
    bounds = [bound for bound in (low, high) if isinstance(bound, np.ndarray) and bound.size == 1]
    if len(bounds) != 2 or not isinstance(x, Tensor) or x.dtype != equation.outvars[0].aval.dtype:
        return None
    scalars = [bound.reshape(()).astype(x.dtype) for bound in bounds]
    return graph.node("Clip", x.array, *scalars, shape=x.array.shape, dtype=x.dtype).seen(x.axes)


def _remainder(graph: Graph, equation: Any, x: Value, y: Value) -> Value | None:
    """Of whole numbers, with the sign of the divisor."""
    del equation
    if not np.issubdtype(x.dtype, np.integer) or x.dtype != y.dtype or (len(x.shape) != len(y.shape) and y.shape):
        return None
    order = ops.order_of((x, y))
    arrays = [graph.arranged(value, order) if value.shape else value for value in (x, y)]
    shape = layout.broadcast(*(value.shape for value in arrays))
    return graph.node("Mod", *arrays, shape=shape, dtype=x.dtype).seen(order)


def _whole_quotient(graph: Graph, equation: Any, x: Value, y: Value) -> Value | None:
    """Of whole numbers, towards minus infinity: what is left after the remainder has gone divides exactly."""
    remainder = _remainder(graph, equation, x, y)
    if not isinstance(remainder, Tensor):
        return None
    x, y = (graph.arranged(value, remainder.axes) if value.shape else value for value in (x, y))
    exact = graph.node("Sub", x, remainder.array, shape=remainder.array.shape, dtype=remainder.dtype)
    return graph.node("Div", exact, y, shape=exact.shape, dtype=remainder.dtype).seen(remainder.axes)


def _resized(graph: Graph, equation: Any, x: Value) -> Value | None:
    """Bilinear, larger, corners not aligned, which is all that the networks ask for."""
    before, after = shape_of(equation.invars[0]), shape_of(equation.outvars[0])
    larger = all(new >= old for old, new in zip(before, after, strict=True))
    if len(after) != 4 or not larger or not isinstance(x, Tensor) or before[::3] != after[::3]:
        return None
    return enlarging.enlarged(graph, graph.full(x, before), after[1:3])


def _softmax(graph: Graph, equation: Any, x: Value) -> Value | None:
    """Along the axis whose largest is looked for."""
    axes = list(_largest_along(equation.params["jaxpr"].jaxpr))
    if not isinstance(x, Tensor) or x.dtype != np.float32 or len(axes) != 1 or len(axes[0]) != 1:
        return None
    place = x.axes[axes[0][0]]
    return graph.node("Softmax", x.array, shape=x.array.shape, dtype=x.dtype, axis=place).seen(x.axes)


def _largest_along(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """Yields the axes of every maximum that a jaxpr takes, inside its functions too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "reduce_max":
            yield tuple(int(axis) for axis in equation.params["axes"])
        inner = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
        if inner is not None:
            yield from _largest_along(inner.jaxpr)


def _rounded(graph: Graph, equation: Any, x: Value, limits: Value) -> Value | None:
    """Rounds to eight bits."""
    del equation
    if not isinstance(x, Tensor) or not isinstance(limits, np.ndarray):
        return None
    numbers, shape = [np.asarray(number) for number in whole_scale(*limits.tolist())], x.array.shape
    whole = graph.node("QuantizeLinear", x.array, *numbers, shape=shape, dtype=np.uint8)
    return graph.node("DequantizeLinear", whole, *numbers, shape=shape, dtype=x.dtype).seen(x.axes)


NAMED: dict[str, Callable[..., Value | None]] = {
    "_resize": _resized,
    "clip": _clipped,
    "floor_divide": _whole_quotient,
    "greedy_suppression": suppressed,
    "hard_sigmoid": _operator("HardSigmoid", alpha=1 / 6, beta=0.5),
    "hard_silu": _operator("HardSwish"),
    "remainder": _remainder,
    "rounded_values": _rounded,
    "softmax": _softmax,
    "softplus": _operator("Softplus"),
}
