"""Translation of named JAX functions to one operator each, which runtimes run faster than the single equations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mtl_jax.export import onnx_layout as layout
from mtl_jax.export import onnx_ops as ops
from mtl_jax.export import onnx_resizing as resizing
from mtl_jax.export.onnx_graph import Graph, Tensor, Value, shape_of
from mtl_jax.export.onnx_rows import non_maximum_suppression
from mtl_jax.export.rounding import scale_and_zero_point


def translate(graph: Graph, equation: Any, inputs: Sequence[Value]) -> list[Value] | None:
    """Translates a call of a named function; returns None where its equations have to be translated one by one."""
    name = equation.params.get("name")
    if name not in FUNCTIONS or not any(isinstance(value, Tensor) for value in inputs):
        return None
    result = FUNCTIONS[name](graph, equation, *inputs)
    return None if result is None else [result]


def _operator(op: str, **attributes: Any) -> Callable[..., Value | None]:
    def function(graph: Graph, equation: Any, x: Value) -> Value | None:
        del equation
        if not isinstance(x, Tensor) or x.dtype != np.float32:
            return None
        return graph.node(op, x.array, shape=x.array.shape, dtype=x.dtype, **attributes).transpose(x.axes)

    return function


def _clip(graph: Graph, equation: Any, x: Value, low: Value, high: Value) -> Value | None:
    """Translates `jnp.clip` with constant bounds."""
    bounds = [bound for bound in (low, high) if isinstance(bound, np.ndarray) and bound.size == 1]
    if len(bounds) != 2 or not isinstance(x, Tensor) or x.dtype != equation.outvars[0].aval.dtype:
        return None
    scalars = [bound.reshape(()).astype(x.dtype) for bound in bounds]
    return graph.node("Clip", x.array, *scalars, shape=x.array.shape, dtype=x.dtype).transpose(x.axes)


def _remainder(graph: Graph, equation: Any, x: Value, y: Value) -> Value | None:
    """Translates the integer remainder, which has the sign of the divisor."""
    del equation
    if not np.issubdtype(x.dtype, np.integer) or x.dtype != y.dtype or (len(x.shape) != len(y.shape) and y.shape):
        return None
    order = ops.order_of((x, y))
    arrays = [graph.stored_in_order(value, order) if value.shape else value for value in (x, y)]
    shape = layout.broadcast_shape(*(value.shape for value in arrays))
    return graph.node("Mod", *arrays, shape=shape, dtype=x.dtype).transpose(order)


def _floor_divide(graph: Graph, equation: Any, x: Value, y: Value) -> Value | None:
    """Translates integer division towards minus infinity: without its remainder, the dividend divides exactly."""
    remainder = _remainder(graph, equation, x, y)
    if not isinstance(remainder, Tensor):
        return None
    x, y = (graph.stored_in_order(value, remainder.axes) if value.shape else value for value in (x, y))
    exact = graph.node("Sub", x, remainder.array, shape=remainder.array.shape, dtype=remainder.dtype)
    return graph.node("Div", exact, y, shape=exact.shape, dtype=remainder.dtype).transpose(remainder.axes)


def _resize(graph: Graph, equation: Any, x: Value) -> Value | None:
    """Translates bilinear upsampling without aligned corners, the only mode that the networks use."""
    before, after = shape_of(equation.invars[0]), shape_of(equation.outvars[0])
    larger = all(new >= old for old, new in zip(before, after, strict=True))
    if len(after) != 4 or not larger or not isinstance(x, Tensor) or before[::3] != after[::3]:
        return None
    return resizing.resize(graph, graph.expand(x, before), after[1:3])


def _softmax(graph: Graph, equation: Any, x: Value) -> Value | None:
    """Translates softmax, along the axis of its maximum."""
    axes = list(_maximum_axes(equation.params["jaxpr"].jaxpr))
    if not isinstance(x, Tensor) or x.dtype != np.float32 or len(axes) != 1 or len(axes[0]) != 1:
        return None
    stored_axis = x.axes[axes[0][0]]
    return graph.node("Softmax", x.array, shape=x.array.shape, dtype=x.dtype, axis=stored_axis).transpose(x.axes)


def _maximum_axes(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """Yields the axes of every maximum in a jaxpr, including those of its inner functions."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "reduce_max":
            yield tuple(int(axis) for axis in equation.params["axes"])
        inner = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
        if inner is not None:
            yield from _maximum_axes(inner.jaxpr)


def _quantise(graph: Graph, equation: Any, x: Value, limits: Value) -> Value | None:
    """Translates the rounding of activations to 8 bits, within limits of all channels or of each."""
    del equation
    if not isinstance(x, Tensor) or not isinstance(limits, np.ndarray):
        return None
    parameters, shape = scale_and_zero_point(*limits), x.array.shape
    by_channel = {"axis": x.axes[-1]} if limits.ndim > 1 else {}
    quantised = graph.node("QuantizeLinear", x.array, *parameters, shape=shape, dtype=np.uint8, **by_channel)
    values = graph.node("DequantizeLinear", quantised, *parameters, shape=shape, dtype=x.dtype, **by_channel)
    return values.transpose(x.axes)


FUNCTIONS: dict[str, Callable[..., Value | None]] = {
    "_resize": _resize,
    "clip": _clip,
    "floor_divide": _floor_divide,
    "greedy_suppression": non_maximum_suppression,
    "hard_sigmoid": _operator("HardSigmoid", alpha=1 / 6, beta=0.5),
    "hard_silu": _operator("HardSwish"),
    "remainder": _remainder,
    "rounded_values": _quantise,
    "softmax": _softmax,
    "softplus": _operator("Softplus"),
}
