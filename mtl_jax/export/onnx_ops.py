"""What each JAX primitive of the networks and of their decoding is in ONNX."""

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
from mtl_jax.export.onnx_graph import Graph, Tensor, Value, described, refuse, shape_of

# Primitives that are one operator, whose axes of 1 repeat.
ARITHMETIC = {
    "abs": "Abs", "add": "Add", "and": "And", "div": "Div", "eq": "Equal", "exp": "Exp", "floor": "Floor",
    "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "log": "Log", "logistic": "Sigmoid", "lt": "Less",
    "max": "Max", "min": "Min", "mul": "Mul", "neg": "Neg", "not": "Not", "or": "Or", "sign": "Sign", "sqrt": "Sqrt",
    "sub": "Sub", "tanh": "Tanh",
}  # fmt: skip
ELEMENTWISE = (*ARITHMETIC, "ne", "rem", "select_n", "rsqrt", "log1p", "convert_element_type", "integer_pow", "square")


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
    name = equation.primitive.name
    if name in ELEMENTWISE:
        return [_elementwise(graph, equation, inputs)]
    if name in WITHOUT_REPEATING:
        return [WITHOUT_REPEATING[name](graph, equation, *inputs)]
    if name not in OPS:
        raise refuse(equation)
    pairs = zip(inputs, equation.invars, strict=True)
    full_values = [graph.full(value, shape_of(variable)) for value, variable in pairs]
    results = OPS[name](graph, equation, *full_values)
    return results if isinstance(results, list) else [results]


def _elementwise(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Value:
    """Computes in the order of axes of the largest operand, into which the others are put."""
    name, (_, dtype) = equation.primitive.name, described(equation.outvars[0])
    if name == "convert_element_type" and inputs[0].dtype == dtype:
        return inputs[0]
    if name == "convert_element_type" and isinstance(x := inputs[0], Tensor) and x.name in graph.counts:
        number = graph.cast(x, dtype)
        graph.counts[number.name] = graph.counts[x.name]
        return number
    if (fused := folding.folded(graph, name, inputs)) is not None:
        return fused
    if name in ("and", "or", "not") and dtype != np.bool_:
        raise refuse(equation, f"of {dtype}")
    if len(inputs) > 2 and name == "select_n" and len(inputs) != 3:
        raise refuse(equation, f"of {len(inputs) - 1} cases")
    order = order_of(inputs)
    arrays = [graph.arranged(value, order) if value.shape else value for value in inputs]
    shape = layout.broadcast(*(array.shape for array in arrays))
    result = _operator(graph, equation, arrays, shape, dtype).seen(order)
    folding.remember_scale(graph, name, inputs, result)
    return result


def order_of(inputs: Sequence[Value]) -> layout.Order:
    """Returns the order of axes of the largest of some values that the graph computes."""
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    largest = max(tensors, key=lambda value: (len(value.shape), abs(math.prod(value.shape))))
    return largest.axes


def _operator(graph: Graph, equation: Any, inputs: Sequence[Value], shape: layout.Shape, dtype: Any) -> Tensor:
    name = equation.primitive.name

    def node(op: str, *inputs: Value, dtype: Any = dtype, **attributes: Any) -> Tensor:
        return graph.node(op, *inputs, shape=shape, dtype=dtype, **attributes)

    above_zero = name == "max" and isinstance(inputs[1], np.ndarray) and not inputs[1].any()
    if above_zero and inputs[0].shape == shape and dtype == np.float32:  # which runtimes fuse with what is before it
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
    chosen, otherwise, value = inputs
    return graph.chosen(chosen, value, otherwise)


def _broadcast(graph: Graph, equation: Any, x: Value, *lengths: Value) -> Value:
    """Places the axes and leaves the new ones at 1."""
    del lengths  # of axes whose length is a symbol
    shape = [1] * len(equation.params["shape"])
    for axis, length in zip(equation.params["broadcast_dimensions"], x.shape, strict=True):
        shape[axis] = length
    return graph.reshaped(x, shape)


def _length(graph: Graph, equation: Any) -> Value:
    """A length that is known when the model runs, as a number."""
    (length,), (_, dtype) = layout.sizes([equation.params["dim"]]), described(equation.outvars[0])
    number = graph.cast(graph.reshaped(graph.length(length), ()), dtype)
    graph.counts[number.name] = length
    return number


def _counted(graph: Graph, equation: Any) -> Value:
    """The numbers from 0 on along an axis whose length is known when the model runs."""
    (shape, dtype), axis = described(equation.outvars[0]), equation.params["dimension"]
    end = graph.reshaped(graph.length(shape[axis]), ())
    limits = np.array(0), end, np.array(1)
    numbers = graph.node("Range", *limits, shape=(shape[axis],), dtype=np.int64)
    return graph.reshaped(graph.cast(numbers, dtype), [n if at == axis else 1 for at, n in enumerate(shape)])


def _reshaped(graph: Graph, equation: Any, x: Value) -> Value:
    """Repeats cells by the operator for it, where that is what the reshaping comes to."""
    full_shape, (target, dtype) = shape_of(equation.invars[0]), described(equation.outvars[0])
    factors = layout.repeats(x.shape, full_shape, target) if isinstance(x, Tensor) and dtype == np.float32 else None
    if factors is None:
        return graph.reshaped(graph.full(x, full_shape), target)
    small = graph.reshaped(x, [length // factor for length, factor in zip(target, factors, strict=True)])
    shape, scales = layout.stored(target, small.axes), np.array(layout.stored(factors, small.axes), np.float32)
    modes: dict[str, Any] = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    nothing = np.zeros(0, np.float32)
    return graph.node("Resize", small.array, nothing, scales, shape=shape, dtype=dtype, **modes).seen(small.axes)


def _convolution(graph: Graph, equation: Any, x: Value, kernel: Value) -> Value:
    params = equation.params
    spec = params["dimension_numbers"]
    if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        raise refuse(equation, "transposed or of groups of the batch")
    (top, bottom), (left, right) = params["padding"]
    attributes = {
        "strides": list(params["window_strides"]),
        "dilations": list(params["rhs_dilation"]),
        "pads": [top, left, bottom, right],
        "group": params["feature_group_count"],
    }
    array = graph.arranged(x, layout.inverse(spec.lhs_spec))
    weights = graph.arranged(kernel, layout.inverse(spec.rhs_spec))
    shape = tuple(shape_of(equation.outvars[0])[axis] for axis in spec.out_spec)
    order = layout.inverse(spec.out_spec)
    if isinstance(weights, np.ndarray) and isinstance(array, Tensor):
        return folding.convolved(graph, Convolution(array, weights, None, shape, attributes, order))
    return graph.node("Conv", array, weights, shape=shape, dtype=x.dtype, **attributes).seen(order)


def _product(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
    (x_axes, y_axes), (x_batch, y_batch) = equation.params["dimension_numbers"]
    shape, dtype = described(equation.outvars[0])
    last = tuple(x_axes) == (len(x.shape) - 1,)
    if not x_batch and last and tuple(y_axes) == (0,) and len(y.shape) == 2 and len(x.shape) == 4:
        # A 1x1 convolution, in the layout of the convolutions around it.
        kernel = graph.reshaped(graph.transposed(y, (1, 0)), (*y.shape[::-1], 1, 1))
        array, shape_first = graph.arranged(x, CHANNELS_FIRST), layout.stored(shape, CHANNELS_FIRST)
        if isinstance(kernel, np.ndarray) and isinstance(array, Tensor):
            return folding.convolved(graph, Convolution(array, kernel, None, shape_first, {}, CHANNELS_FIRST))
        return graph.node("Conv", array, kernel, shape=shape_first, dtype=dtype).seen(CHANNELS_FIRST)
    leading = tuple(range(len(x_batch)))
    by_rows = last and tuple(y_axes) == (len(y_batch),) and len(y.shape) == len(y_batch) + 2
    same = len(y.shape) == len(x.shape) or not x_batch
    if by_rows and same and tuple(x_batch) == tuple(y_batch) == leading:
        return graph.node("MatMul", x, y, shape=shape, dtype=dtype)
    return graph.node("Einsum", x, y, shape=shape, dtype=dtype, equation=_formula(equation))


def _formula(equation: Any) -> str:
    (x_axes, y_axes), (x_batch, y_batch) = equation.params["dimension_numbers"]
    x_rank, y_rank = (len(variable.aval.shape) for variable in equation.invars)
    letters = iter(string.ascii_lowercase)
    x_letters = [next(letters) for _ in range(x_rank)]
    y_letters = [next(letters) for _ in range(y_rank)]
    for x_axis, y_axis in zip((*x_axes, *x_batch), (*y_axes, *y_batch), strict=True):
        y_letters[y_axis] = x_letters[x_axis]
    free = [
        *(x_letters[axis] for axis in x_batch),
        *(letter for axis, letter in enumerate(x_letters) if axis not in (*x_axes, *x_batch)),
        *(letter for axis, letter in enumerate(y_letters) if axis not in (*y_axes, *y_batch)),
    ]
    return f"{''.join(x_letters)},{''.join(y_letters)}->{''.join(free)}"


def _sliced(graph: Graph, equation: Any, x: Value) -> Value:
    """Takes a range of every axis; of one that stands at 1 for more, the one entry for all."""
    params, full_shape = equation.params, shape_of(equation.invars[0])
    start, stop = layout.sizes(params["start_indices"]), layout.sizes(params["limit_indices"])
    strides = params["strides"] or (1,) * len(full_shape)
    bounds_asked = list(zip(start, stop, strides, strict=True))
    is_kept = [bound == (0, length, 1) for bound, length in zip(bounds_asked, full_shape, strict=True)]
    lengths = zip(x.shape, is_kept, full_shape, strict=True)
    x = graph.full(x, [held if keep else length for held, keep, length in lengths])
    bounds = [(0, held, 1) if keep else bound for bound, held, keep in zip(bounds_asked, x.shape, is_kept, strict=True)]
    return graph.part(x, *zip(*bounds, strict=True))


def _squeezed(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.squeezed(x, [axis % len(x.shape) for axis in equation.params["dimensions"]])


def _joined(graph: Graph, values: Sequence[Value], axis: int, dtype: Any) -> Value:
    order = order_of(values)
    arrays = [graph.arranged(value, order) for value in values]
    place, shape = order[axis], list(arrays[0].shape)
    shape[place] = sum(array.shape[place] for array in arrays)
    return graph.node("Concat", *arrays, shape=shape, dtype=dtype, axis=place).seen(order)


def _concatenated(graph: Graph, equation: Any, *values: Value) -> Value:
    return _joined(graph, values, equation.params["dimension"], described(equation.outvars[0])[1])


def _stacked(graph: Graph, equation: Any, *values: Value) -> Value:
    axis, (shape, dtype) = equation.params["axis"], described(equation.outvars[0])
    widened_shape = [*shape[:axis], 1, *shape[axis + 1 :]]
    return _joined(graph, [graph.reshaped(value, widened_shape) for value in values], axis, dtype)


def _padded(graph: Graph, equation: Any, x: Value, value: Value) -> Value:
    low, high, between = zip(*equation.params["padding_config"], strict=True)
    if any(between):
        raise refuse(equation, "between elements")
    if min(*low, *high) < 0:
        raise refuse(equation, "by less than nothing")
    shape, dtype = described(equation.outvars[0])
    order = x.axes if isinstance(x, Tensor) else tuple(range(len(x.shape)))
    pads = np.array([*layout.stored(low, order), *layout.stored(high, order)], np.int64)
    array, padded_shape = graph.arranged(x, order), layout.stored(shape, order)
    return graph.node("Pad", array, pads, value, shape=padded_shape, dtype=dtype).seen(order)


def _same(graph: Graph, equation: Any, x: Value) -> Value:
    del graph, equation
    return x


WITHOUT_REPEATING: dict[str, Callable[..., Value]] = {
    "broadcast_in_dim": _broadcast,
    "copy": _same,
    "dim_as_value": _length,
    "iota": _counted,
    "reshape": _reshaped,
    "scatter": rows.scattered,
    "slice": _sliced,
    "squeeze": _squeezed,
    "stop_gradient": _same,
    "transpose": lambda graph, equation, x: graph.transposed(x, equation.params["permutation"]),
}
OPS: dict[str, Callable[..., Any]] = {
    "argmax": reductions.argmax,
    "concatenate": _concatenated,
    "conv_general_dilated": _convolution,
    "cumsum": reductions.cumulative_sum,
    "dot_general": _product,
    "gather": rows.gathered,
    "pad": _padded,
    "reduce_max": reductions.reduced("ReduceMax"),
    "reduce_or": reductions.any_true,
    "reduce_sum": reductions.summed,
    "stack": _stacked,
    "top_k": reductions.top_k,
}
