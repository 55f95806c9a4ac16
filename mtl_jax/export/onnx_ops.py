"""Translation of JAX primitives to ONNX operators."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mtl_jax.export import onnx_folding as folding
from mtl_jax.export import onnx_layout as layout
from mtl_jax.export import onnx_reductions as reductions
from mtl_jax.export import onnx_rows as rows
from mtl_jax.export.onnx_folding import CHANNELS_FIRST, Convolution
from mtl_jax.export.onnx_graph import Concatenation, Graph, Tensor, Value, shape_and_dtype, shape_of, untranslated

# Primitives that are one operator, which broadcasts axes of length 1.
ARITHMETIC = {
    "abs": "Abs", "add": "Add", "and": "And", "div": "Div", "eq": "Equal", "exp": "Exp", "floor": "Floor",
    "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "log": "Log", "logistic": "Sigmoid", "lt": "Less",
    "max": "Max", "min": "Min", "mul": "Mul", "neg": "Neg", "not": "Not", "or": "Or", "sign": "Sign", "sqrt": "Sqrt",
    "sub": "Sub", "tanh": "Tanh",
}  # fmt: skip
ELEMENTWISE = (*ARITHMETIC, "ne", "rem", "select_n", "rsqrt", "log1p", "convert_element_type", "integer_pow", "square")


def add(graph: Graph, equation: Any, inputs: Sequence[Value]) -> list[Value]:
    """Translates one equation.

    Args:
        graph: receives the nodes.
        equation: equation of a jaxpr.
        inputs: values of its input variables.

    Returns:
        The values of its output variables.

    Raises:
        UserError: the equation has no translation.
    """
    name = equation.primitive.name
    if name in ELEMENTWISE:
        return [_elementwise(graph, equation, inputs)]
    if name in UNEXPANDED_OPS:
        return [UNEXPANDED_OPS[name](graph, equation, *inputs)]
    if name not in OPS:
        raise untranslated(equation)
    pairs = zip(inputs, equation.invars, strict=True)
    expanded = [graph.expand(value, shape_of(variable)) for value, variable in pairs]
    results = OPS[name](graph, equation, *expanded)
    return results if isinstance(results, list) else [results]


def _elementwise(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Value:
    """Translates an elementwise operation, in the storage order of its largest operand."""
    name, (_, dtype) = equation.primitive.name, shape_and_dtype(equation.outvars[0])
    if name == "convert_element_type" and inputs[0].dtype == dtype:
        return inputs[0]
    if name == "convert_element_type" and isinstance(x := inputs[0], Tensor) and x.name in graph.counts:
        number = graph.cast(x, dtype)
        graph.counts[number.name] = graph.counts[x.name]
        return number
    if (fused := folding.fold(graph, name, inputs)) is not None:
        return fused
    if name in ("and", "or", "not") and dtype != np.bool_:
        raise untranslated(equation, f"of {dtype}")
    if len(inputs) > 2 and name == "select_n" and len(inputs) != 3:
        raise untranslated(equation, f"of {len(inputs) - 1} cases")
    order = order_of(inputs)
    arrays = [graph.stored_in_order(value, order) if value.shape else value for value in inputs]
    shape = layout.broadcast_shape(*(array.shape for array in arrays))
    result = _operator(graph, equation, arrays, shape, dtype).transpose(order)
    folding.remember_scale(graph, name, inputs, result)
    return result


def order_of(inputs: Sequence[Value]) -> layout.Order:
    """Returns the storage order of the largest tensor among some values."""
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    largest = max(tensors, key=lambda value: (len(value.shape), abs(math.prod(value.shape))))
    return largest.axes


def _operator(graph: Graph, equation: Any, inputs: Sequence[Value], shape: layout.Shape, dtype: Any) -> Tensor:
    name = equation.primitive.name

    def node(op: str, *inputs: Value, dtype: Any = dtype, **attributes: Any) -> Tensor:
        return graph.node(op, *inputs, shape=shape, dtype=dtype, **attributes)

    is_relu = name == "max" and isinstance(inputs[1], np.ndarray) and not inputs[1].any()
    if is_relu and inputs[0].shape == shape and dtype == np.float32:  # runtimes fuse it with the node before it
        return node("Relu", inputs[0])
    if name in ARITHMETIC:
        return node(ARITHMETIC[name], *inputs)
    if name == "ne":
        return node("Not", node("Equal", *inputs, dtype=np.bool_))
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
    condition, otherwise, value = inputs
    return graph.select(condition, value, otherwise)


def _broadcast(graph: Graph, equation: Any, x: Value, *lengths: Value) -> Value:
    """Inserts axes of length 1; they are broadcast later, where an operator needs it."""
    del lengths  # dynamic lengths, which the shape holds as symbols too
    shape = [1] * len(equation.params["shape"])
    for axis, length in zip(equation.params["broadcast_dimensions"], x.shape, strict=True):
        shape[axis] = length
    return graph.reshape(x, shape)


def _dimension_size(graph: Graph, equation: Any) -> Value:
    """Returns a dynamic length as a scalar."""
    (length,), (_, dtype) = layout.integer_shape([equation.params["dim"]]), shape_and_dtype(equation.outvars[0])
    number = graph.cast(graph.reshape(graph.length_value(length), ()), dtype)
    graph.counts[number.name] = length
    return number


def _iota(graph: Graph, equation: Any) -> Value:
    """Returns 0, 1, 2, … along an axis of dynamic length."""
    (shape, dtype), axis = shape_and_dtype(equation.outvars[0]), equation.params["dimension"]
    end = graph.reshape(graph.length_value(shape[axis]), ())
    limits = np.array(0), end, np.array(1)
    numbers = graph.node("Range", *limits, shape=(shape[axis],), dtype=np.int64)
    return graph.reshape(
        graph.cast(numbers, dtype), [length if position == axis else 1 for position, length in enumerate(shape)]
    )


def _reshape(graph: Graph, equation: Any, x: Value) -> Value:
    """Reshapes a value; a broadcast and reshape that repeat cells become a nearest-neighbour Resize."""
    expanded_shape, (target, dtype) = shape_of(equation.invars[0]), shape_and_dtype(equation.outvars[0])
    factors = (
        layout.repeat_factors(x.shape, expanded_shape, target)
        if isinstance(x, Tensor) and dtype == np.float32
        else None
    )
    if factors is None:
        return graph.reshape(graph.expand(x, expanded_shape), target)
    small = graph.reshape(x, [length // factor for length, factor in zip(target, factors, strict=True)])
    shape, scales = (
        layout.stored_shape(target, small.axes),
        np.array(layout.stored_shape(factors, small.axes), np.float32),
    )
    modes: dict[str, Any] = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    no_region = np.zeros(0, np.float32)
    return graph.node("Resize", small.array, no_region, scales, shape=shape, dtype=dtype, **modes).transpose(small.axes)


def _convolution(graph: Graph, equation: Any, x: Value, kernel: Value) -> Value:
    params = equation.params
    spec = params["dimension_numbers"]
    if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        raise untranslated(equation, "transposed or of groups of the batch")
    (top, bottom), (left, right) = params["padding"]
    attributes = {
        "strides": list(params["window_strides"]),
        "dilations": list(params["rhs_dilation"]),
        "pads": [top, left, bottom, right],
        "group": params["feature_group_count"],
    }
    array = graph.stored_in_order(x, layout.inverse_order(spec.lhs_spec))
    weights = graph.stored_in_order(kernel, layout.inverse_order(spec.rhs_spec))
    shape = tuple(shape_of(equation.outvars[0])[axis] for axis in spec.out_spec)
    order = layout.inverse_order(spec.out_spec)
    if isinstance(weights, np.ndarray) and isinstance(array, Tensor):
        return folding.add_convolution(graph, Convolution(array, weights, None, shape, attributes, order))
    return graph.node("Conv", array, weights, shape=shape, dtype=x.dtype, **attributes).transpose(order)


def _dot_general(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
    (x_axes, y_axes), (x_batch, y_batch) = equation.params["dimension_numbers"]
    shape, dtype = shape_and_dtype(equation.outvars[0])
    is_last_axis = tuple(x_axes) == (len(x.shape) - 1,)
    if not x_batch and is_last_axis and tuple(y_axes) == (0,) and len(y.shape) == 2 and len(x.shape) == 4:
        # A 1x1 convolution, in the layout of the convolutions around it.
        kernel = graph.reshape(y.transpose((1, 0)), (*y.shape[::-1], 1, 1))
        array, conv_shape = graph.stored_in_order(x, CHANNELS_FIRST), layout.stored_shape(shape, CHANNELS_FIRST)
        if isinstance(kernel, np.ndarray) and isinstance(array, Tensor):
            return folding.add_convolution(graph, Convolution(array, kernel, None, conv_shape, {}, CHANNELS_FIRST))
        return graph.node("Conv", array, kernel, shape=conv_shape, dtype=dtype).transpose(CHANNELS_FIRST)
    leading = tuple(range(len(x_batch)))
    is_matmul = is_last_axis and tuple(y_axes) == (len(y_batch),) and len(y.shape) == len(y_batch) + 2
    equal_rank = len(y.shape) == len(x.shape) or not x_batch
    if is_matmul and equal_rank and tuple(x_batch) == tuple(y_batch) == leading:
        return folding.add_product(graph, x, y, shape, dtype)
    return graph.node("Einsum", x, y, shape=shape, dtype=dtype, equation=_formula(equation))


def _formula(equation: Any) -> str:
    (x_axes, y_axes), (x_batch, y_batch) = equation.params["dimension_numbers"]
    x_rank, y_rank = (len(variable.aval.shape) for variable in equation.invars)
    letters = iter(string.ascii_lowercase)
    x_letters = [next(letters) for _ in range(x_rank)]
    y_letters = [next(letters) for _ in range(y_rank)]
    for x_axis, y_axis in zip((*x_axes, *x_batch), (*y_axes, *y_batch), strict=True):
        y_letters[y_axis] = x_letters[x_axis]
    result_letters = [
        *(x_letters[axis] for axis in x_batch),
        *(letter for axis, letter in enumerate(x_letters) if axis not in (*x_axes, *x_batch)),
        *(letter for axis, letter in enumerate(y_letters) if axis not in (*y_axes, *y_batch)),
    ]
    return f"{''.join(x_letters)},{''.join(y_letters)}->{''.join(result_letters)}"


def _slice(graph: Graph, equation: Any, x: Value) -> Value:
    """Slices every axis; an axis that is still to be broadcast stays at length 1 where all of it is selected."""
    params, expanded_shape = equation.params, shape_of(equation.invars[0])
    start, stop = layout.integer_shape(params["start_indices"]), layout.integer_shape(params["limit_indices"])
    strides = params["strides"] or (1,) * len(expanded_shape)
    bounds = list(zip(start, stop, strides, strict=True))
    is_full = [bound == (0, length, 1) for bound, length in zip(bounds, expanded_shape, strict=True)]
    lengths = zip(x.shape, is_full, expanded_shape, strict=True)
    x = graph.expand(x, [length if full else expanded for length, full, expanded in lengths])
    bounds = [(0, length, 1) if full else bound for bound, length, full in zip(bounds, x.shape, is_full, strict=True)]
    return graph.slice(x, *zip(*bounds, strict=True))


def _squeeze(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.squeeze(x, [axis % len(x.shape) for axis in equation.params["dimensions"]])


def _concatenate_stored(graph: Graph, values: Sequence[Value], axis: int, dtype: Any) -> Value:
    order = order_of(values)
    arrays = [graph.stored_in_order(value, order) for value in values]
    stored_axis, shape = order[axis], list(arrays[0].shape)
    shape[stored_axis] = sum(array.shape[stored_axis] for array in arrays)
    result = graph.node("Concat", *arrays, shape=shape, dtype=dtype, axis=stored_axis).transpose(order)
    graph.origins[result.name] = Concatenation(tuple(values), axis, result.axes)
    return result


def _concatenate(graph: Graph, equation: Any, *values: Value) -> Value:
    return _concatenate_stored(graph, values, equation.params["dimension"], shape_and_dtype(equation.outvars[0])[1])


def _stack(graph: Graph, equation: Any, *values: Value) -> Value:
    axis, (shape, dtype) = equation.params["axis"], shape_and_dtype(equation.outvars[0])
    widened_shape = [*shape[:axis], 1, *shape[axis + 1 :]]
    return _concatenate_stored(graph, [graph.reshape(value, widened_shape) for value in values], axis, dtype)


def _pad(graph: Graph, equation: Any, x: Value, value: Value) -> Value:
    low, high, interior = zip(*equation.params["padding_config"], strict=True)
    if any(interior):
        raise untranslated(equation, "between elements")
    if min(*low, *high) < 0:
        raise untranslated(equation, "by less than nothing")
    shape, dtype = shape_and_dtype(equation.outvars[0])
    order = x.axes if isinstance(x, Tensor) else tuple(range(len(x.shape)))
    pads = np.array([*layout.stored_shape(low, order), *layout.stored_shape(high, order)], np.int64)
    array, padded_shape = graph.stored_in_order(x, order), layout.stored_shape(shape, order)
    return graph.node("Pad", array, pads, value, shape=padded_shape, dtype=dtype).transpose(order)


def _identity(graph: Graph, equation: Any, x: Value) -> Value:
    del graph, equation
    return x


# Primitives whose inputs may have axes of length 1 that are still to be broadcast.
UNEXPANDED_OPS: dict[str, Callable[..., Value]] = {
    "broadcast_in_dim": _broadcast,
    "copy": _identity,
    "dim_as_value": _dimension_size,
    "iota": _iota,
    "reshape": _reshape,
    "scatter": rows.scatter,
    "slice": _slice,
    "squeeze": _squeeze,
    "stop_gradient": _identity,
    "transpose": lambda graph, equation, x: x.transpose(equation.params["permutation"]),
}
OPS: dict[str, Callable[..., Any]] = {
    "argmax": reductions.argmax,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "cumsum": reductions.cumulative_sum,
    "dot_general": _dot_general,
    "gather": rows.gather,
    "pad": _pad,
    "reduce_max": reductions.reduction("ReduceMax"),
    "reduce_or": reductions.reduce_or,
    "reduce_sum": reductions.reduce_sum,
    "stack": _stack,
    "top_k": reductions.top_k,
}
