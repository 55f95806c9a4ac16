"""What each JAX primitive of the networks and of their decoding is in ONNX."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mtl_jax.export.onnx_folding import Convolution, convolved, folded
from mtl_jax.export.onnx_graph import Graph, Tensor, Value, refuse

# Primitives that are one operator, whose axes of 1 repeat.
ARITHMETIC = {
    "abs": "Abs", "add": "Add", "and": "And", "div": "Div", "eq": "Equal", "exp": "Exp", "ge": "GreaterOrEqual",
    "gt": "Greater", "le": "LessOrEqual", "log": "Log", "logistic": "Sigmoid", "lt": "Less", "max": "Max", "min": "Min",
    "mul": "Mul", "neg": "Neg", "not": "Not", "or": "Or", "sign": "Sign", "sqrt": "Sqrt", "sub": "Sub", "tanh": "Tanh",
}  # fmt: skip
ELEMENTWISE = (*ARITHMETIC, "ne", "rem", "select_n", "rsqrt", "log1p", "convert_element_type", "integer_pow", "square")


def has_name(equation: Any) -> bool:
    """Whether a whole function of JAX is one operator, which runtimes fuse or run faster than its parts."""
    return equation.params.get("name") in NAMED


def add(graph: Graph, equation: Any, inputs: Sequence[Value]) -> list[Value]:
    """Adds one equation to the graph.

    Args:
        graph: gets the nodes.
        equation: of a jaxpr.
        inputs: of the equation.

    Returns:
        Its results.

    Raises:
        UserError: the equation has no translation.
    """
    name, shape, dtype = equation.primitive.name, *_of(equation.outvars[0])
    if name in ELEMENTWISE:
        return [_elementwise(graph, equation, inputs)]
    if has_name(equation):
        return [NAMED[equation.params["name"]](graph, equation, inputs[0])]
    if name in WITHOUT_REPEATING:
        return [WITHOUT_REPEATING[name](graph, equation, inputs[0])]
    if name not in OPS:
        raise refuse(equation)
    whole = [graph.full(each, variable.aval.shape) for each, variable in zip(inputs, equation.invars, strict=True)]
    results = OPS[name](graph, equation, *whole)
    return results if isinstance(results, list) else [results._replace(shape=shape, dtype=dtype)]


def _of(variable: Any) -> tuple[tuple[int, ...], np.dtype]:
    return variable.aval.shape, np.dtype(variable.aval.dtype)


def _elementwise(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensor:
    name, (_, dtype) = equation.primitive.name, _of(equation.outvars[0])
    shape = np.broadcast_shapes(*(each.shape for each in inputs))

    def node(op: str, *inputs: Value, dtype: Any = dtype, **attributes: Any) -> Tensor:
        return graph.node(op, *inputs, shape=shape, dtype=dtype, **attributes)

    if (whole := folded(graph, name, inputs)) is not None:
        return whole
    if name in ("and", "or", "not") and dtype != np.bool_:
        raise refuse(equation, f"of {dtype}")
    above_zero = name == "max" and isinstance(inputs[1], np.ndarray) and not inputs[1].any()
    if above_zero and inputs[0].shape == shape and dtype == np.float32:  # which runtimes fuse with what is before it
        return node("Relu", inputs[0])
    if name in ARITHMETIC:
        return node(ARITHMETIC[name], *inputs)
    if name == "ne":
        return node("Not", node("Equal", *inputs))
    if name == "rem":
        return node("Mod", *inputs, fmod=1)
    if name == "rsqrt":
        return node("Reciprocal", node("Sqrt", *inputs))
    if name == "log1p":
        return node("Log", node("Add", *inputs, np.ones((), dtype)))
    if name == "square":
        return node("Mul", *inputs, *inputs)
    if name == "integer_pow":
        return node("Pow", *inputs, np.asarray(equation.params["y"], dtype))
    if name == "convert_element_type":
        return graph.cast(inputs[0], dtype)
    if len(inputs) != 3:
        raise refuse(equation, f"of {len(inputs) - 1} cases")
    chosen, otherwise, value = inputs
    return graph.chosen(chosen, value, otherwise)


def _broadcast(graph: Graph, equation: Any, x: Value) -> Value:
    """Places the axes and leaves the new ones at 1."""
    shape = [1] * len(equation.params["shape"])
    for axis, length in zip(equation.params["broadcast_dimensions"], x.shape, strict=True):
        shape[axis] = length
    return graph.reshaped(x, shape)


def _convolution(graph: Graph, equation: Any, x: Value, kernel: Value) -> Value:
    given = equation.params
    layout = given["dimension_numbers"]
    if set(given["lhs_dilation"]) != {1} or given["batch_group_count"] != 1:
        raise refuse(equation, "transposed or of groups of the batch")
    (top, bottom), (left, right) = given["padding"]
    attributes = {
        "strides": list(given["window_strides"]),
        "dilations": list(given["rhs_dilation"]),
        "pads": [top, left, bottom, right],
        "group": given["feature_group_count"],
    }
    first, weights = graph.transposed(x, layout.lhs_spec), graph.transposed(kernel, layout.rhs_spec)
    shape = tuple(equation.outvars[0].aval.shape[axis] for axis in layout.out_spec)
    order = tuple(np.argsort(layout.out_spec).tolist())
    if isinstance(weights, np.ndarray):
        return convolved(graph, Convolution(first, weights, None, shape, attributes, order))
    return graph.transposed(graph.node("Conv", first, weights, shape=shape, dtype=x.dtype, **attributes), order)


def _product(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
    (x_axes, y_axes), (x_batch, y_batch) = equation.params["dimension_numbers"]
    shape, dtype = _of(equation.outvars[0])
    if not x_batch and tuple(x_axes) == (len(x.shape) - 1,) and tuple(y_axes) == (0,) and len(y.shape) == 2:
        if len(x.shape) != 4:
            return graph.node("MatMul", x, y, shape=shape, dtype=dtype)
        # A 1x1 convolution, in the layout of the convolutions around it.
        kernel = graph.reshaped(graph.transposed(y, (1, 0)), (*y.shape[::-1], 1, 1))
        first, around = graph.transposed(x, (0, 3, 1, 2)), tuple(shape[axis] for axis in (0, 3, 1, 2))
        if isinstance(kernel, np.ndarray):
            return convolved(graph, Convolution(first, kernel, None, around, {}, (0, 2, 3, 1)))
        return graph.transposed(graph.node("Conv", first, kernel, shape=around, dtype=dtype), (0, 2, 3, 1))
    letters = iter(string.ascii_lowercase)
    x_letters = [next(letters) for _ in x.shape]
    y_letters = [next(letters) for _ in y.shape]
    for x_axis, y_axis in zip((*x_axes, *x_batch), (*y_axes, *y_batch), strict=True):
        y_letters[y_axis] = x_letters[x_axis]
    free = [
        *(x_letters[axis] for axis in x_batch),
        *(letter for axis, letter in enumerate(x_letters) if axis not in (*x_axes, *x_batch)),
        *(letter for axis, letter in enumerate(y_letters) if axis not in (*y_axes, *y_batch)),
    ]
    formula = f"{''.join(x_letters)},{''.join(y_letters)}->{''.join(free)}"
    return graph.node("Einsum", x, y, shape=shape, dtype=dtype, equation=formula)


def _sliced(graph: Graph, equation: Any, x: Value) -> Value:
    given, whole = equation.params, equation.invars[0].aval.shape
    start, stop = given["start_indices"], given["limit_indices"]
    strides = given["strides"] or (1,) * len(whole)
    kept = [part == (0, length, 1) for part, length in zip(zip(start, stop, strides, strict=True), whole, strict=True)]
    x = graph.full(x, [own if keep else length for own, keep, length in zip(x.shape, kept, whole, strict=True)])
    return graph.part(x, start, [min(last, own) for last, own in zip(stop, x.shape, strict=True)], strides)


def _squeezed(graph: Graph, equation: Any, x: Value) -> Value:
    gone = [axis % len(x.shape) for axis in equation.params["dimensions"]]
    return graph.reshaped(x, [length for axis, length in enumerate(x.shape) if axis not in gone])


def _concatenated(graph: Graph, equation: Any, *parts: Value) -> Value:
    axis = equation.params["dimension"]
    shape, dtype = _of(equation.outvars[0])
    return graph.node("Concat", *parts, shape=shape, dtype=dtype, axis=axis)


def _stacked(graph: Graph, equation: Any, *parts: Value) -> Value:
    axis, (shape, dtype) = equation.params["axis"], _of(equation.outvars[0])
    each = [*shape[:axis], 1, *shape[axis + 1 :]]
    slices = [graph.reshaped(part, each) for part in parts]
    return graph.node("Concat", *slices, shape=shape, dtype=dtype, axis=axis)


def _padded(graph: Graph, equation: Any, x: Value, value: Value) -> Value:
    low, high, between = zip(*equation.params["padding_config"], strict=True)
    if any(between):
        raise refuse(equation, "between elements")
    shape, dtype = _of(equation.outvars[0])
    return graph.node("Pad", x, np.array([*low, *high], np.int64), value, shape=shape, dtype=dtype)


def _sum(graph: Graph, equation: Any, x: Value) -> Value:
    axes, (shape, dtype) = np.array(equation.params["axes"], np.int64), _of(equation.outvars[0])
    return graph.node("ReduceSum", x, axes, shape=shape, dtype=dtype, keepdims=0)


def _maximum(graph: Graph, equation: Any, x: Value) -> Value:
    axes, (shape, dtype) = [int(axis) for axis in equation.params["axes"]], _of(equation.outvars[0])
    return graph.node("ReduceMax", x, shape=shape, dtype=dtype, axes=axes, keepdims=0)


def _argmax(graph: Graph, equation: Any, x: Value) -> Value:
    (axis,), (shape, dtype) = equation.params["axes"], _of(equation.outvars[0])
    found = graph.node("ArgMax", x, shape=shape, dtype=np.int64, axis=int(axis), keepdims=0)
    return graph.cast(found, dtype)


def _top_k(graph: Graph, equation: Any, x: Value) -> list[Value]:
    (shape, dtype), (_, index_dtype) = map(_of, equation.outvars)
    count = np.array([equation.params["k"]], np.int64)
    axis = equation.params.get("axis", len(shape) - 1)
    values = graph.node("TopK", x, count, shape=shape, dtype=dtype, outputs=2, axis=axis)
    index = Tensor(f"{values.name}.1", shape, np.dtype(np.int64))
    return [values, graph.cast(index, index_dtype)]


def _cumulative_sum(graph: Graph, equation: Any, x: Value) -> Value:
    given, (shape, dtype) = equation.params, _of(equation.outvars[0])
    return graph.node(
        "CumSum", x, np.array(given["axis"], np.int64), shape=shape, dtype=dtype, reverse=int(given["reverse"])
    )


def _row_numbers(graph: Graph, index: Value) -> Tensor:
    """The first number of each index, i64[batch, rows, 1]."""
    batch, rows, _ = index.shape
    index = graph.part(index, (0, 0, 0), (batch, rows, 1), (1, 1, 1))
    return graph.cast(index, np.int64)


def _gathered(graph: Graph, equation: Any, x: Value, index: Value) -> Value:
    """Rows of each example."""
    given, (shape, dtype) = equation.params["dimension_numbers"], _of(equation.outvars[0])
    whole = (1, 1, *x.shape[2:]) == tuple(equation.params["slice_sizes"])
    rows = whole and tuple(given.collapsed_slice_dims) == (1,) and tuple(given.operand_batching_dims) == (0,)
    if not rows or tuple(given.start_index_map) != (1,):
        raise refuse(equation, "of anything but rows")
    return graph.node("GatherND", x, _row_numbers(graph, index), shape=shape, dtype=dtype, batch_dims=1)


def _scattered(graph: Graph, equation: Any, x: Value, index: Value, updates: Value) -> Value:
    """Rows of each example; those past the end are dropped, by a row that takes them and is cut off."""
    given = equation.params["dimension_numbers"]
    rows = tuple(given.inserted_window_dims) == (1,) and tuple(given.operand_batching_dims) == (0,)
    if not rows or tuple(given.scatter_dims_to_operand_dims) != (1,):
        raise refuse(equation, "of anything but rows")
    batch, count, *rest = x.shape
    spare = np.zeros((batch, 1, *rest), x.dtype)
    longer = graph.node("Concat", x, spare, shape=(batch, count + 1, *rest), dtype=x.dtype, axis=1)
    number = _row_numbers(graph, index)
    number = graph.node("Min", number, np.array(count, np.int64), shape=number.shape, dtype=np.int64)
    example = np.broadcast_to(np.arange(batch)[:, None, None], number.shape)
    places = graph.node("Concat", example, number, shape=(*number.shape[:2], 2), dtype=np.int64, axis=2)
    placed = graph.node("ScatterND", longer, places, updates, shape=longer.shape, dtype=x.dtype)
    return graph.part(placed, (0,) * len(x.shape), x.shape, (1,) * len(x.shape))


def _hard_sigmoid(graph: Graph, equation: Any, x: Value) -> Value:
    del equation
    return graph.node("HardSigmoid", x, shape=x.shape, dtype=np.float32, alpha=1 / 6, beta=0.5)


def _resized(graph: Graph, equation: Any, x: Value) -> Value:
    """Bilinear, larger, corners not aligned, which is all that the networks ask for; with the channels first."""
    shape, dtype = _of(equation.outvars[0])
    first = graph.transposed(graph.full(x, equation.invars[0].aval.shape), (0, 3, 1, 2))
    size = [shape[axis] for axis in (0, 3, 1, 2)]
    unused = np.zeros(0, np.float32), np.zeros(0, np.float32)
    inputs = first, *unused, np.array(size, np.int64)
    modes: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return graph.transposed(graph.node("Resize", *inputs, shape=size, dtype=dtype, **modes), (0, 2, 3, 1))


NAMED: dict[str, Callable[[Graph, Any, Value], Value]] = {"hard_sigmoid": _hard_sigmoid, "_resize": _resized}
WITHOUT_REPEATING: dict[str, Callable[[Graph, Any, Value], Value]] = {
    "broadcast_in_dim": _broadcast,
    "slice": _sliced,
    "squeeze": _squeezed,
}
OPS: dict[str, Callable[..., Any]] = {
    "argmax": _argmax,
    "concatenate": _concatenated,
    "conv_general_dilated": _convolution,
    "copy": lambda graph, equation, x: x,
    "cumsum": _cumulative_sum,
    "dot_general": _product,
    "gather": _gathered,
    "pad": _padded,
    "reduce_max": _maximum,
    "reduce_or": lambda graph, equation, x: graph.any(x, [int(axis) for axis in equation.params["axes"]]),
    "reduce_sum": _sum,
    "reshape": lambda graph, equation, x: graph.reshaped(x, equation.outvars[0].aval.shape),
    "scatter": _scattered,
    "stack": _stacked,
    "stop_gradient": lambda graph, equation, x: x,
    "top_k": _top_k,
    "transpose": lambda graph, equation, x: graph.transposed(x, equation.params["permutation"]),
}
