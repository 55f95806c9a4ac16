"""ONNX graph builder: nodes, initializers, and the basic operations on values."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx

from mtl_jax.errors import UserError
from mtl_jax.export import onnx_layout as layout
from mtl_jax.export.onnx_layout import Order, Shape


class Tensor(NamedTuple):
    """A tensor of the graph, with its shape, type and axis order.

    An axis may have length 1 where the JAX value is longer: ONNX arithmetic broadcasts it. The stored array may have
    its axes in another order, so a transposition adds no node until an operator needs it.
    """

    name: str
    shape: Shape
    dtype: np.dtype
    order: Order | None = None  # axis i is axis order[i] of the stored array; None is the identity

    @property
    def axes(self) -> Order:
        """Position of each axis in the stored array."""
        return tuple(range(len(self.shape))) if self.order is None else self.order

    @property
    def array(self) -> Tensor:
        """The stored array, with its axes in storage order."""
        return Tensor(self.name, layout.stored_shape(self.shape, self.axes), self.dtype)

    def transpose(self, order: Sequence[int]) -> Tensor:
        """Returns the transposed value: its axis i is axis order[i] of this one."""
        axes = self.axes
        return self._replace(shape=tuple(self.shape[i] for i in order), order=tuple(axes[i] for i in order))


class Range(NamedTuple):
    """Origin of a tensor: a range of entries along an axis of another."""

    value: Tensor
    axis: int
    start: int
    stop: int


class Concatenation(NamedTuple):
    """Origin of a tensor: others, one after another along an axis."""

    parts: tuple[Value, ...]
    axis: int
    axes: Order


Value = np.ndarray | Tensor  # an array is a constant


class Graph:
    """A graph under construction; the graph of a loop body shares the initializers and names of its parent."""

    def __init__(self, parent: Graph | None = None) -> None:
        self.helper: Any = onnx.helper
        self.nodes: list[Any] = []
        self.outputs_by_operation: dict[tuple[Any, ...], Tensor] = {}  # operator, inputs, attributes -> output
        self.initializers: dict[str, np.ndarray] = parent.initializers if parent else {}
        self.constants: dict[tuple[Any, ...], str] = parent.constants if parent else {}  # type, shape, digest -> name
        self.origins: dict[str, Any] = {}  # output name -> how `onnx_folding` may fold it
        self.reshapings: dict[str, Tensor] = {}  # output name of a Reshape -> its input
        self.indices: dict[str, Tensor] = {}  # output name of a Cast between integer types -> its input
        self.counter: Any = parent.counter if parent else itertools.count()
        self.symbols: dict[str, Tensor] = parent.symbols if parent else {}  # each i64[1], of `layout.SYMBOLS`
        self.counts: dict[str, int] = {}  # name of a scalar -> the dynamic length that it holds

    def unique_name(self, stem: str) -> str:
        """Returns a name that is not used yet."""
        return f"{stem}_{next(self.counter)}"

    def name(self, value: Value) -> str:
        """Returns the name of an array in the value's axis order; constants become initializers."""
        if isinstance(value, Tensor):
            return self.stored_in_order(value, range(len(value.shape))).name
        array = np.ascontiguousarray(value).reshape(value.shape)
        key = str(array.dtype), array.shape, hashlib.sha256(array.data).digest()
        if key not in self.constants:  # kernels that tasks share are stored once
            self.constants[key] = self.unique_name("constant")
            self.initializers[self.constants[key]] = array
        return self.constants[key]

    def node(
        self, op: str, *inputs: Value, shape: Sequence[int], dtype: Any, outputs: int = 1, **attributes: Any
    ) -> Tensor:
        """Adds a node and returns its first output; further outputs have its name and the suffix .1, .2, …"""
        names = [self.name(value) for value in inputs]
        key = op, *names, outputs, repr(sorted(attributes.items()))
        if "body" not in attributes and key in self.outputs_by_operation:
            return self.outputs_by_operation[key]
        name = self.unique_name(op)
        results = [name, *(f"{name}.{number}" for number in range(1, outputs))]
        self.nodes.append(self.helper.make_node(op, names, results, name, **attributes))
        self.outputs_by_operation[key] = Tensor(name, tuple(shape), np.dtype(dtype))
        return self.outputs_by_operation[key]

    def stored_in_order(self, value: Value, order: Sequence[int]) -> Any:
        """Returns a constant or tensor that stores axis i of a value at position order[i]."""
        permutation = layout.inverse_order(tuple(order))
        if isinstance(value, np.ndarray):
            return value.transpose(permutation)
        array, permutation = value.array, [value.axes[axis] for axis in permutation]
        shape = [array.shape[axis] for axis in permutation]
        non_unit = [axis for axis in permutation if array.shape[axis] != 1]
        if non_unit == sorted(non_unit):
            return self.reshape(array, shape)
        return self.node("Transpose", array, shape=shape, dtype=value.dtype, perm=permutation)

    def shape_value(self, shape: Sequence[int]) -> Value:
        """Returns a shape as a value of the graph, i64[rank]."""
        if layout.is_static(*shape):
            return np.array(shape, np.int64)
        lengths = [self.length_value(length) for length in shape]
        return self.node("Concat", *lengths, shape=(len(shape),), dtype=np.int64, axis=0)

    def length_value(self, length: int) -> Value:
        """Returns a length as a value of the graph, i64[1]."""
        if layout.is_static(length):
            return np.array([length], np.int64)

        def node(op: str, first: Value, second: Value) -> Tensor:
            return self.node(op, first, second, shape=(1,), dtype=np.int64)

        terms = []
        for number, names in layout.terms(length):
            symbols: list[Value] = [self.symbols[name] for name in names]
            factors = symbols if number == 1 and symbols else [*symbols, np.array([number], np.int64)]
            terms.append(functools.reduce(lambda *pair: node("Mul", *pair), factors))
        return functools.reduce(lambda *pair: node("Add", *pair), terms)

    def _reshape_target(self, before: Sequence[int], after: Sequence[int]) -> Value:
        """Returns the shape input of Reshape: 0 copies a dynamic length, -1 infers one."""
        copied = [0 if pair[0] == pair[1] and not layout.is_static(pair[1]) else pair[1] for pair in zip(before, after)]  # noqa: B905
        lengths = [*copied, *after[len(copied) :]]
        dynamic_axes = [axis for axis, length in enumerate(lengths) if not layout.is_static(length)]
        if dynamic_axes:
            lengths[dynamic_axes[-1]] = -1
        return self.shape_value(lengths)

    def expand(self, value: Value, shape: Sequence[int]) -> Value:
        """Broadcasts a value to a shape."""
        if value.shape == tuple(shape):
            return value
        if isinstance(value, np.ndarray) and layout.is_static(*shape):
            return np.broadcast_to(value, shape)
        if isinstance(value, np.ndarray):
            return self.node("Expand", value, self.shape_value(shape), shape=shape, dtype=value.dtype)
        array_shape = layout.stored_shape(tuple(shape), value.axes)
        expanded = self.node("Expand", value.array, self.shape_value(array_shape), shape=array_shape, dtype=value.dtype)
        return expanded.transpose(value.axes)

    def reshape(self, value: Value, shape: Sequence[int]) -> Any:
        """Reshapes a value, without a transposition where its storage order permits."""
        shape = tuple(shape)
        if isinstance(value, np.ndarray):
            return value.reshape(shape)
        if value.shape == shape:
            return value
        regrouped = layout.reshape_stored(value.shape, value.axes, shape)
        array, (target, order) = (
            (value.array, regrouped) if regrouped else (self.in_value_order(value), (shape, tuple(range(len(shape)))))
        )
        array = self.reshapings.get(array.name, array)
        if array.shape != target:
            source = array
            shape_value = self._reshape_target(array.shape, target)
            array = self.node("Reshape", array, shape_value, shape=target, dtype=value.dtype)
            self.reshapings[array.name] = source
        return array.transpose(order)

    def in_value_order(self, value: Tensor) -> Tensor:
        """Returns the array that stores the axes in the value's order."""
        return self.stored_in_order(value, range(len(value.shape)))

    def slice(self, value: Value, start: Sequence[int], stop: Sequence[int], strides: Sequence[int]) -> Value:
        """Returns a slice of every axis."""
        if isinstance(value, np.ndarray):
            return value[tuple(slice(*bound) for bound in zip(start, stop, strides, strict=True))]
        ranges = zip(start, stop, strides, strict=True)
        is_full = [bounds == (0, length, 1) for bounds, length in zip(ranges, value.shape, strict=True)]
        axes = [axis for axis, full in enumerate(is_full) if not full]
        shape = [
            length if full else -(-(last - first) // step)
            for first, last, step, length, full in zip(start, stop, strides, value.shape, is_full, strict=True)
        ]
        if not axes:
            return value
        if len(axes) == 1 and strides[axes[0]] == 1:
            source = self._source(value, axes[0], start[axes[0]], stop[axes[0]])
            if source is not None:
                return source
        bounds = [[bound[axis] for axis in axes] for bound in (start, stop, value.axes, strides)]
        arrays = [self.shape_value(bound) for bound in bounds]
        result = self.node(
            "Slice", value.array, *arrays, shape=layout.stored_shape(shape, value.axes), dtype=value.dtype
        )
        if len(axes) == 1 and strides[axes[0]] == 1:
            self.origins[result.name] = Range(value, axes[0], start[axes[0]], stop[axes[0]])
        return result.transpose(value.axes)

    def _source(self, value: Tensor, axis: int, start: int, stop: int) -> Value | None:
        """Returns a slice of what a value was sliced from or concatenated of, where that has all of it."""
        origin = self.origins.get(value.name)
        if isinstance(origin, Range) and (origin.axis, origin.value.axes) == (axis, value.axes):
            parts = ((origin.value, origin.start),)
        elif isinstance(origin, Concatenation) and (origin.axis, origin.axes) == (axis, value.axes):
            ends = list(itertools.accumulate(part.shape[axis] for part in origin.parts))
            if not layout.is_static(*ends):  # where a part ends is known only when the model runs
                return None
            parts = [
                (part, part.shape[axis] - end)
                for part, end in zip(origin.parts, ends, strict=True)
                if end - part.shape[axis] <= start and stop <= end
            ]
        else:
            return None
        for part, offset in parts:
            lows, highs = [0] * len(part.shape), list(part.shape)
            lows[axis], highs[axis] = start + offset, stop + offset
            return self.slice(part, lows, highs, [1] * len(part.shape))
        return None

    def squeeze(self, value: Value, axes: Sequence[int]) -> Value:
        """Removes axes of length 1; a slice of one entry followed by a squeeze becomes a Gather."""
        if isinstance(value, Tensor):
            entry = self.origins.get(value.name)
            key = (tuple(axes), value.axes)
            if isinstance(entry, Range) and key == ((entry.axis,), entry.value.axes) and entry.stop == entry.start + 1:
                return self.take_entry(entry.value, entry.axis, entry.start)
        return self.reshape(value, [length for axis, length in enumerate(value.shape) if axis not in axes])

    def take_entry(self, value: Tensor, axis: int, index: int) -> Tensor:
        """Returns one entry along an axis, without that axis."""
        order, array = layout.remove_axes(value.axes, [axis]), value.array
        shape = layout.stored_shape([length for position, length in enumerate(value.shape) if position != axis], order)
        stored_axis = value.axes[axis]
        result = self.node("Gather", array, np.array(index, np.int64), shape=shape, dtype=value.dtype, axis=stored_axis)
        return result.transpose(order)

    def cast(self, value: Value, dtype: Any) -> Tensor:
        """Casts a value to another type; of integers that were cast from this type, returns those before the cast."""
        kind = self.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        if isinstance(value, np.ndarray):
            return self.node("Cast", value, shape=value.shape, dtype=dtype, to=kind)
        array = value.array
        source = self.indices.get(self.reshapings.get(array.name, array).name)
        if source is not None and source.dtype == dtype:
            return self.reshape(source, array.shape).transpose(value.axes)
        result = self.node("Cast", array, shape=array.shape, dtype=dtype, to=kind)
        if np.issubdtype(array.dtype, np.integer) and np.issubdtype(dtype, np.integer):
            self.indices[result.name] = array
        return result.transpose(value.axes)

    def any(self, value: Value, axes: Sequence[int]) -> Tensor:
        """Reduces axes by a logical or, computed as the maximum of 0 and 1."""
        shape = [length for axis, length in enumerate(value.shape) if axis not in axes]
        numbers = self.cast(value, np.int32)
        if axes:
            numbers = self.node("ReduceMax", numbers, shape=shape, dtype=np.int32, axes=list(axes), keepdims=0)
        return self.cast(numbers, np.bool_)

    def select(self, condition: Value, value: Value, otherwise: Value) -> Tensor:
        """Selects elements by a condition."""
        shape, dtype = layout.broadcast_shape(condition.shape, value.shape, otherwise.shape), value.dtype
        if dtype != np.bool_:
            return self.node("Where", condition, value, otherwise, shape=shape, dtype=dtype)
        # Some runtimes lack Where for booleans.
        negated = self.node("Not", condition, shape=condition.shape, dtype=dtype)
        pairs = (condition, value), (negated, otherwise)
        choices = [self.node("And", *pair, shape=shape, dtype=dtype) for pair in pairs]
        return self.node("Or", *choices, shape=shape, dtype=dtype)

    def value_info(self, value: Tensor) -> Any:
        """Returns the declaration of a graph's input or output."""
        kind = self.helper.np_dtype_to_tensor_dtype(value.dtype)
        shape = [layout.length_text(length) for length in value.shape]
        return self.helper.make_tensor_value_info(value.name, kind, shape)

    def rename(self, value: Value, name: str) -> Tensor:
        """Adds an alias of a value under another name."""
        self.nodes.append(self.helper.make_node("Identity", [self.name(value)], [name], name))
        return Tensor(name, value.shape, value.dtype)


def shape_of(variable: Any) -> Shape:
    """Returns the shape of a jaxpr's variable."""
    return layout.integer_shape(variable.aval.shape)


def shape_and_dtype(variable: Any) -> tuple[Shape, np.dtype]:
    """Returns the shape and the type of a jaxpr's variable."""
    return shape_of(variable), np.dtype(variable.aval.dtype)


def untranslated(equation: Any, detail: str = "") -> UserError:
    """Returns the error for an equation that has no translation."""
    return UserError(
        f"ONNX: the network computes {equation.primitive.name}{detail and ' ' + detail}, which is not translated; "
        "export it as stablehlo"
    )
