"""The nodes of an ONNX graph in the making, and the few that everything else is made of."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx

from mtl_jax.errors import UserError


class Tensor(NamedTuple):
    """A value of the graph. Axes may be 1 where JAX's value has more: ONNX's arithmetic repeats them."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


Value = np.ndarray | Tensor  # an array is known already


class Graph:
    """Nodes in the making; the graphs of loops share their parent's initializers and names."""

    def __init__(self, parent: Graph | None = None) -> None:
        self.helper: Any = onnx.helper
        self.nodes: list[Any] = []
        self.initializers: dict[str, np.ndarray] = parent.initializers if parent else {}
        self.constants: dict[tuple[Any, ...], str] = parent.constants if parent else {}  # by what they hold
        self.convolutions: dict[str, Any] = {}  # result -> `onnx_folding.Convolution`
        self.numbers: Any = parent.numbers if parent else itertools.count()

    def fresh(self, what: str) -> str:
        """Returns a new name."""
        return f"{what}_{next(self.numbers)}"

    def name(self, value: Value) -> str:
        """Returns the name of a value, of which an array becomes an initializer."""
        if isinstance(value, Tensor):
            return value.name
        whole = np.ascontiguousarray(value).reshape(value.shape)
        key = str(whole.dtype), whole.shape, hashlib.sha256(whole.data).digest()
        if key not in self.constants:  # tasks pass through the same kernels, which the file holds once
            self.constants[key] = self.fresh("constant")
            self.initializers[self.constants[key]] = whole
        return self.constants[key]

    def node(
        self, op: str, *inputs: Value, shape: Sequence[int], dtype: Any, outputs: int = 1, **attributes: Any
    ) -> Tensor:
        """Adds a node and returns its first output; those after it are called as it is, with .1 and so on behind."""
        name = self.fresh(op)
        names = [name, *(f"{name}.{number}" for number in range(1, outputs))]
        self.nodes.append(self.helper.make_node(op, [self.name(each) for each in inputs], names, name, **attributes))
        return Tensor(name, tuple(shape), np.dtype(dtype))

    def full(self, value: Value, shape: Sequence[int]) -> Value:
        """Repeats the axes that were left at 1."""
        if value.shape == tuple(shape):
            return value
        if isinstance(value, np.ndarray):
            return np.broadcast_to(value, shape)
        return self.node("Expand", value, np.array(shape, np.int64), shape=shape, dtype=value.dtype)

    def reshaped(self, value: Value, shape: Sequence[int]) -> Value:
        """Gives a value other axes."""
        if isinstance(value, np.ndarray):
            return value.reshape(shape)
        if value.shape == tuple(shape):
            return value
        return self.node("Reshape", value, np.array(shape, np.int64), shape=shape, dtype=value.dtype)

    def transposed(self, value: Value, order: Sequence[int]) -> Value:
        """Puts a value's axes into another order."""
        if isinstance(value, np.ndarray):
            return value.transpose(order)
        shape = [value.shape[axis] for axis in order]
        return self.node("Transpose", value, shape=shape, dtype=value.dtype, perm=list(order))

    def part(self, value: Value, start: Sequence[int], stop: Sequence[int], strides: Sequence[int]) -> Tensor:
        """Takes a range of every axis."""
        shape = [-(-(last - first) // step) for first, last, step in zip(start, stop, strides, strict=True)]
        bounds = [np.array(each, np.int64) for each in (start, stop, range(len(start)), strides)]
        return self.node("Slice", value, *bounds, shape=shape, dtype=value.dtype)

    def cast(self, value: Value, dtype: Any) -> Tensor:
        """Gives a value another type."""
        kind = self.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.node("Cast", value, shape=value.shape, dtype=dtype, to=kind)

    def any(self, value: Value, axes: Sequence[int]) -> Tensor:
        """Says whether any is true along some axes, as the largest of ones and zeros."""
        shape = [length for axis, length in enumerate(value.shape) if axis not in axes]
        numbers = self.cast(value, np.int32)
        if axes:
            numbers = self.node("ReduceMax", numbers, shape=shape, dtype=np.int32, axes=list(axes), keepdims=0)
        return self.cast(numbers, np.bool_)

    def chosen(self, which: Value, value: Value, otherwise: Value) -> Tensor:
        """Chooses element by element."""
        shape, dtype = np.broadcast_shapes(which.shape, value.shape, otherwise.shape), value.dtype
        if dtype != np.bool_:
            return self.node("Where", which, value, otherwise, shape=shape, dtype=dtype)
        # Not every runtime chooses among truth values.
        unchosen = self.node("Not", which, shape=which.shape, dtype=dtype)
        parts = [self.node("And", *pair, shape=shape, dtype=dtype) for pair in ((which, value), (unchosen, otherwise))]
        return self.node("Or", *parts, shape=shape, dtype=dtype)

    def info(self, value: Tensor) -> Any:
        """Returns the declaration of a graph's input or output."""
        kind = self.helper.np_dtype_to_tensor_dtype(value.dtype)
        return self.helper.make_tensor_value_info(value.name, kind, value.shape)

    def named(self, value: Value, name: str) -> Tensor:
        """Gives a value another name."""
        self.nodes.append(self.helper.make_node("Identity", [self.name(value)], [name], name))
        return Tensor(name, value.shape, value.dtype)


def refuse(equation: Any, why: str = "") -> UserError:
    """Returns what to raise for an equation that has no translation."""
    return UserError(
        f"ONNX: the network computes {equation.primitive.name}{why and ' ' + why}, which is not translated; "
        "export it as stablehlo"
    )
