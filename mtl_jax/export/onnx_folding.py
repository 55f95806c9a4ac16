"""What becomes one operator: norms and biases around a convolution, a sum over its count; and what nothing reads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.export import onnx_layout as layout
from mtl_jax.export.onnx_graph import Graph, Tensor, Value
from mtl_jax.export.onnx_layout import Order

CHANNELS_FIRST = (0, 2, 3, 1)  # where batch, height, width, channels lie in the arrays that convolutions take
SPACE = (2, 3)  # in such an array


class Convolution(NamedTuple):
    """A convolution whose kernel is known, as far as it has been folded, and where the axes of its result lie."""

    x: Tensor  # the array, channels first
    kernel: np.ndarray  # outputs first
    bias: np.ndarray | None
    shape: tuple[int, ...]  # of the result, channels first
    attributes: Mapping[str, Any]
    order: Order


class Scaled(NamedTuple):
    """An array, channels first, times a number for each channel."""

    x: Tensor
    factors: np.ndarray


class Sum(NamedTuple):
    """A sum over some axes of an array, which keeps none of them."""

    x: Tensor
    axes: tuple[int, ...]


def convolved(graph: Graph, convolution: Convolution) -> Tensor:
    """Adds a convolution to the graph, and remembers it for what may be folded into it."""
    scaled = graph.origins.get(convolution.x.name)
    if isinstance(scaled, Scaled) and convolution.attributes.get("group", 1) == 1:  # zeros around stay zeros
        factors = scaled.factors.reshape(1, -1, *[1] * (convolution.kernel.ndim - 2))
        convolution = convolution._replace(x=scaled.x, kernel=convolution.kernel * factors)
    weights = [convolution.kernel] if convolution.bias is None else [convolution.kernel, convolution.bias]
    dtype, attributes = convolution.kernel.dtype, convolution.attributes
    result = graph.node("Conv", convolution.x, *weights, shape=convolution.shape, dtype=dtype, **attributes)
    graph.origins[result.name] = convolution
    return result.seen(convolution.order)


def folded(graph: Graph, name: str, inputs: Sequence[Value]) -> Tensor | None:
    """Returns what an operation and the one before it are in one operator; None where there is none."""
    if len(inputs) != 2 or (not isinstance(inputs[0], Tensor) and name not in ("add", "mul")):
        return None
    dividend, divisor = inputs
    if name == "div" and isinstance(dividend, Tensor) and isinstance(divisor, Tensor):
        return _mean_of_unknown(graph, dividend, divisor)
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    numbers = [value for value in inputs if isinstance(value, np.ndarray)]
    if not len(tensors) == len(numbers) == 1:
        return None
    (x,), (number,) = tensors, numbers
    if name == "div" and number.size == 1 and (mean := _mean(graph, x, number.item())) is not None:
        return mean
    origin = graph.origins.get(x.name)
    if name in ("add", "mul") and isinstance(origin, Convolution):
        return _folded_into(graph, origin, name, _of_channels(x, number, origin.kernel.shape[0]))
    return None


def _folded_into(graph: Graph, convolution: Convolution, name: str, number: np.ndarray | None) -> Tensor | None:
    if number is None:
        return None
    bias = convolution.bias
    if name == "add":
        return convolved(graph, convolution._replace(bias=number if bias is None else bias + number))
    kernel = convolution.kernel * number.reshape(-1, *[1] * (convolution.kernel.ndim - 1))
    return convolved(graph, convolution._replace(kernel=kernel, bias=None if bias is None else bias * number))


def remember_scale(graph: Graph, name: str, inputs: Sequence[Value], result: Tensor) -> None:
    """Notes that a result is an array times, or over, a number for each channel: a convolution may take the numbers."""
    if name not in ("mul", "div") or len(inputs) != 2:
        return
    x, number = inputs if isinstance(inputs[0], Tensor) else inputs[::-1]
    if (name == "div" and x is not inputs[0]) or not isinstance(x, Tensor) or not isinstance(number, np.ndarray):
        return
    if len(x.shape) == 4 and (factors := _of_channels(x, number, x.array.shape[1])) is not None:
        graph.origins[result.name] = Scaled(x.array, 1 / factors if name == "div" else factors)


def _of_channels(x: Tensor, number: np.ndarray, channels: int) -> np.ndarray | None:
    """Returns the number of each channel, where an array has one for each of them, or one for all."""
    if number.dtype != x.dtype:
        return None
    if number.size == 1:
        return np.broadcast_to(number.reshape(1), (channels,))
    if number.ndim != len(x.shape) or number.size != channels:
        return None
    return number.reshape(channels) if layout.stored(number.shape, x.axes)[1] == channels else None


def summed(graph: Graph, x: Tensor, axes: Sequence[int]) -> Tensor:
    """Adds a sum over some axes to the graph, and remembers it for what makes it a mean."""
    array, places = x.array, tuple(sorted(x.axes[axis] for axis in axes))
    shape = [length for place, length in enumerate(array.shape) if place not in places]
    result = graph.node("ReduceSum", array, np.array(places, np.int64), shape=shape, dtype=x.dtype, keepdims=0)
    graph.origins[result.name] = Sum(array, places)
    return result.seen(layout.without(x.axes, axes))


def _mean_of_unknown(graph: Graph, x: Tensor, number: Tensor) -> Tensor | None:
    """As `_mean`, where the count is known when the model runs."""
    count = graph.counts.get(graph.reshapings.get(number.name, number).name)
    return None if count is None else _mean(graph, x, count)


def _mean(graph: Graph, x: Tensor, count: int | float) -> Tensor | None:
    """Returns a sum over the count of its terms as a mean, also where axes of 1 have been put in between."""
    array = x.array
    total = graph.reshapings.get(array.name, array)
    origin = graph.origins.get(total.name)
    if not isinstance(origin, Sum):
        return None
    if math.prod(origin.x.shape[axis] for axis in origin.axes) != count:
        return None
    shape = [1 if axis in origin.axes else length for axis, length in enumerate(origin.x.shape)]
    if origin.axes == SPACE and len(shape) == 4:  # which runtimes compute in the layout of convolutions
        result = graph.node("GlobalAveragePool", origin.x, shape=shape, dtype=x.dtype)
    else:
        result = graph.node("ReduceMean", origin.x, shape=shape, dtype=x.dtype, axes=list(origin.axes), keepdims=1)
    return graph.reshaped(result, array.shape).seen(x.axes)


def needed(nodes: Sequence[Any], results: Iterable[str]) -> tuple[list[Any], set[str]]:
    """Returns the nodes that lead to some results, in their order, and the names that they read."""
    names, used_nodes = set(results), []
    for node in reversed(nodes):
        if names.intersection(node.output):
            names |= _reads(node)
            used_nodes.append(node)
    return used_nodes[::-1], names


def _reads(node: Any) -> set[str]:
    """What a node reads, inside its own graph too."""
    inner = [each for attribute in node.attribute for each in attribute.g.node]
    outer = [output.name for attribute in node.attribute for output in attribute.g.output]
    return set(node.input).union(outer, *(_reads(node_) for node_ in inner))


def without_copies(nodes: Sequence[Any], kept: Iterable[str]) -> list[Any]:
    """Returns nodes of which those that only rename a result are gone: what makes the result takes its new name.

    Args:
        nodes: in their order.
        kept: names that no node makes.
    """
    renamed: dict[str, str] = {}
    taken = set(kept)
    for node in nodes:
        if node.op_type == "Identity" and node.input[0] not in taken and node.input[0] not in renamed:
            renamed[node.input[0]] = node.output[0]
    less = [node for node in nodes if node.op_type != "Identity" or renamed.get(node.input[0]) != node.output[0]]
    for node in less:
        _rename(node, renamed)
    return less


def _rename(node: Any, renamed: Mapping[str, str]) -> None:
    for names in (node.input, node.output):
        names[:] = [renamed.get(name, name) for name in names]
    for attribute in node.attribute:
        for inner in attribute.g.node:
            _rename(inner, renamed)
