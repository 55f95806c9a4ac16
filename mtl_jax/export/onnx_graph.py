"""The nodes of an ONNX graph in the making, and the few that everything else is made of."""

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
    """A value of the graph.

    Axes may be 1 where JAX's value has more: ONNX's arithmetic repeats them. The array of this name may hold the
    axes in another order, so that a transposition is a note and no node until an operator needs it done.
    """

    name: str
    shape: Shape
    dtype: np.dtype
    order: Order | None = None  # axis i is axis order[i] of the array; None: as they come

    @property
    def axes(self) -> Order:
        """Where each axis lies in the array."""
        return tuple(range(len(self.shape))) if self.order is None else self.order

    @property
    def array(self) -> Tensor:
        """The array as it is held."""
        return Tensor(self.name, layout.stored(self.shape, self.axes), self.dtype)

    def seen(self, order: Sequence[int]) -> Tensor:
        """Returns the value whose axis i is axis order[i] of this one."""
        axes = self.axes
        return self._replace(shape=tuple(self.shape[i] for i in order), order=tuple(axes[i] for i in order))


class Entry(NamedTuple):
    """One of the entries along an axis."""

    value: Tensor
    axis: int
    number: int


Value = np.ndarray | Tensor  # an array is known already


class Graph:
    """Nodes in the making; the graphs of loops share their parent's initializers and names."""

    def __init__(self, parent: Graph | None = None) -> None:
        self.helper: Any = onnx.helper
        self.nodes: list[Any] = []
        self.made: dict[tuple[Any, ...], Tensor] = {}  # what computes a result -> the result
        self.initializers: dict[str, np.ndarray] = parent.initializers if parent else {}
        self.constants: dict[tuple[Any, ...], str] = parent.constants if parent else {}  # by what they hold
        self.origins: dict[str, Any] = {}  # result -> what `onnx_folding` knows of its making
        self.reshapings: dict[str, Tensor] = {}  # result of a Reshape -> the array that it reshapes
        self.numbers: Any = parent.numbers if parent else itertools.count()
        self.symbols: dict[str, Tensor] = parent.symbols if parent else {}  # [1] each, of `layout.SYMBOLS`
        self.counts: dict[str, int] = {}  # name of a number -> the length that it is

    def fresh(self, stem: str) -> str:
        """Returns a new name."""
        return f"{stem}_{next(self.numbers)}"

    def name(self, value: Value) -> str:
        """Returns the name of an array in the order of the value's axes; known ones become initializers."""
        if isinstance(value, Tensor):
            return self.arranged(value, range(len(value.shape))).name
        array = np.ascontiguousarray(value).reshape(value.shape)
        key = str(array.dtype), array.shape, hashlib.sha256(array.data).digest()
        if key not in self.constants:  # tasks pass through the same kernels, which the file holds once
            self.constants[key] = self.fresh("constant")
            self.initializers[self.constants[key]] = array
        return self.constants[key]

    def node(
        self, op: str, *inputs: Value, shape: Sequence[int], dtype: Any, outputs: int = 1, **attributes: Any
    ) -> Tensor:
        """Adds a node and returns its first output; those after it are called as it is, with .1 and so on behind."""
        names = [self.name(value) for value in inputs]
        key = op, *names, outputs, repr(sorted(attributes.items()))
        if "body" not in attributes and key in self.made:
            return self.made[key]
        name = self.fresh(op)
        results = [name, *(f"{name}.{number}" for number in range(1, outputs))]
        self.nodes.append(self.helper.make_node(op, names, results, name, **attributes))
        self.made[key] = Tensor(name, tuple(shape), np.dtype(dtype))
        return self.made[key]

    def arranged(self, value: Value, order: Sequence[int]) -> Any:
        """Returns the array that holds a value with axis i at order[i]: a known one, or one of the graph."""
        turn = layout.inverse(tuple(order))
        if isinstance(value, np.ndarray):
            return value.transpose(turn)
        array, turn = value.array, [value.axes[axis] for axis in turn]
        shape = [array.shape[axis] for axis in turn]
        filled = [axis for axis in turn if array.shape[axis] != 1]
        if filled == sorted(filled):
            return self.reshaped(array, shape)
        return self.node("Transpose", array, shape=shape, dtype=value.dtype, perm=turn)

    def sizes(self, shape: Sequence[int]) -> Value:
        """Returns a shape as numbers of the graph."""
        if layout.known(*shape):
            return np.array(shape, np.int64)
        lengths = [self.length(length) for length in shape]
        return self.node("Concat", *lengths, shape=(len(shape),), dtype=np.int64, axis=0)

    def length(self, length: int) -> Value:
        """Returns a length as a number of the graph, i64[1]."""
        if layout.known(length):
            return np.array([length], np.int64)

        def node(op: str, first: Value, second: Value) -> Tensor:
            return self.node(op, first, second, shape=(1,), dtype=np.int64)

        terms = []
        for number, names in layout.terms(length):
            symbols: list[Value] = [self.symbols[name] for name in names]
            factors = symbols if number == 1 and symbols else [*symbols, np.array([number], np.int64)]
            terms.append(functools.reduce(lambda *pair: node("Mul", *pair), factors))
        return functools.reduce(lambda *pair: node("Add", *pair), terms)

    def _new_shape(self, before: Sequence[int], after: Sequence[int]) -> Value:
        """Returns the shape that Reshape takes: of lengths that are not known, 0 keeps one and -1 is what remains."""
        kept = [0 if pair[0] == pair[1] and not layout.known(pair[1]) else pair[1] for pair in zip(before, after)]  # noqa: B905
        lengths = [*kept, *after[len(kept) :]]
        open_places = [place for place, length in enumerate(lengths) if not layout.known(length)]
        if open_places:
            lengths[open_places[-1]] = -1
        return self.sizes(lengths)

    def full(self, value: Value, shape: Sequence[int]) -> Value:
        """Repeats the axes that were left at 1."""
        if value.shape == tuple(shape):
            return value
        if isinstance(value, np.ndarray) and layout.known(*shape):
            return np.broadcast_to(value, shape)
        if isinstance(value, np.ndarray):
            return self.node("Expand", value, self.sizes(shape), shape=shape, dtype=value.dtype)
        array_shape = layout.stored(tuple(shape), value.axes)
        expanded = self.node("Expand", value.array, self.sizes(array_shape), shape=array_shape, dtype=value.dtype)
        return expanded.seen(value.axes)

    def reshaped(self, value: Value, shape: Sequence[int]) -> Any:
        """Gives a value other axes."""
        shape = tuple(shape)
        if isinstance(value, np.ndarray):
            return value.reshape(shape)
        if value.shape == shape:
            return value
        regrouped = layout.reshaped(value.shape, value.axes, shape)
        array, (target, order) = (
            (value.array, regrouped) if regrouped else (self.plain(value), (shape, tuple(range(len(shape)))))
        )
        array = self.reshapings.get(array.name, array)
        if array.shape != target:
            source = array
            shape_value = self._new_shape(array.shape, target)
            array = self.node("Reshape", array, shape_value, shape=target, dtype=value.dtype)
            self.reshapings[array.name] = source
        return array.seen(order)

    def plain(self, value: Tensor) -> Tensor:
        """Returns the array whose axes are the value's."""
        return self.arranged(value, range(len(value.shape)))

    def transposed(self, value: Value, order: Sequence[int]) -> Value:
        """Puts a value's axes into another order."""
        return value.transpose(order) if isinstance(value, np.ndarray) else value.seen(order)

    def part(self, value: Value, start: Sequence[int], stop: Sequence[int], strides: Sequence[int]) -> Value:
        """Takes a range of every axis."""
        if isinstance(value, np.ndarray):
            return value[tuple(slice(*bound) for bound in zip(start, stop, strides, strict=True))]
        ranges = zip(start, stop, strides, strict=True)
        is_whole = [bounds == (0, length, 1) for bounds, length in zip(ranges, value.shape, strict=True)]
        axes = [axis for axis, is_all in enumerate(is_whole) if not is_all]
        shape = [
            length if is_all else -(-(last - first) // step)
            for first, last, step, length, is_all in zip(start, stop, strides, value.shape, is_whole, strict=True)
        ]
        if not axes:
            return value
        bounds = [[bound[axis] for axis in axes] for bound in (start, stop, value.axes, strides)]
        arrays = [self.sizes(bound) for bound in bounds]
        result = self.node("Slice", value.array, *arrays, shape=layout.stored(shape, value.axes), dtype=value.dtype)
        if len(axes) == 1 and shape[axes[0]] == 1:
            self.origins[result.name] = Entry(value, axes[0], start[axes[0]])
        return result.seen(value.axes)

    def squeezed(self, value: Value, axes: Sequence[int]) -> Value:
        """Takes axes of 1 away; one entry of an axis is taken without that axis at once."""
        if isinstance(value, Tensor):
            entry = self.origins.get(value.name)
            if isinstance(entry, Entry) and tuple(axes) == (entry.axis,) and value.axes == entry.value.axes:
                return self.entry(entry.value, entry.axis, entry.number)
        return self.reshaped(value, [length for axis, length in enumerate(value.shape) if axis not in axes])

    def entry(self, value: Tensor, axis: int, number: int) -> Tensor:
        """Takes one entry along an axis, which goes."""
        order, array = layout.without(value.axes, [axis]), value.array
        shape = layout.stored([length for other_axis, length in enumerate(value.shape) if other_axis != axis], order)
        place = value.axes[axis]
        result = self.node("Gather", array, np.array(number, np.int64), shape=shape, dtype=value.dtype, axis=place)
        return result.seen(order)

    def cast(self, value: Value, dtype: Any) -> Tensor:
        """Gives a value another type."""
        kind = self.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        if isinstance(value, np.ndarray):
            return self.node("Cast", value, shape=value.shape, dtype=dtype, to=kind)
        array = value.array
        return self.node("Cast", array, shape=array.shape, dtype=dtype, to=kind).seen(value.axes)

    def any(self, value: Value, axes: Sequence[int]) -> Tensor:
        """Says whether any is true along some axes, as the largest of ones and zeros."""
        shape = [length for axis, length in enumerate(value.shape) if axis not in axes]
        numbers = self.cast(value, np.int32)
        if axes:
            numbers = self.node("ReduceMax", numbers, shape=shape, dtype=np.int32, axes=list(axes), keepdims=0)
        return self.cast(numbers, np.bool_)

    def chosen(self, condition: Value, value: Value, otherwise: Value) -> Tensor:
        """Chooses element by element."""
        shape, dtype = layout.broadcast(condition.shape, value.shape, otherwise.shape), value.dtype
        if dtype != np.bool_:
            return self.node("Where", condition, value, otherwise, shape=shape, dtype=dtype)
        # Not every runtime chooses among truth values.
        unchosen = self.node("Not", condition, shape=condition.shape, dtype=dtype)
        pairs = (condition, value), (unchosen, otherwise)
        choices = [self.node("And", *pair, shape=shape, dtype=dtype) for pair in pairs]
        return self.node("Or", *choices, shape=shape, dtype=dtype)

    def info(self, value: Tensor) -> Any:
        """Returns the declaration of a graph's input or output."""
        kind = self.helper.np_dtype_to_tensor_dtype(value.dtype)
        shape = [layout.text(length) for length in value.shape]
        return self.helper.make_tensor_value_info(value.name, kind, shape)

    def named(self, value: Value, name: str) -> Tensor:
        """Gives a value another name."""
        self.nodes.append(self.helper.make_node("Identity", [self.name(value)], [name], name))
        return Tensor(name, value.shape, value.dtype)


def shape_of(variable: Any) -> Shape:
    """Returns the shape of a jaxpr's variable."""
    return layout.sizes(variable.aval.shape)


def described(variable: Any) -> tuple[Shape, np.dtype]:
    """Returns the shape and the type of a jaxpr's variable."""
    return shape_of(variable), np.dtype(variable.aval.dtype)


def refuse(equation: Any, why: str = "") -> UserError:
    """Returns what to raise for an equation that has no translation."""
    return UserError(
        f"ONNX: the network computes {equation.primitive.name}{why and ' ' + why}, which is not translated; "
        "export it as stablehlo"
    )
