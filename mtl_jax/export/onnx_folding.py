"""Graph folding: scales and biases into convolutions, sums into means; removal of unused nodes and identities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx

from mtl_jax.export import onnx_layout as layout
from mtl_jax.export.onnx_graph import Graph, Tensor, Value
from mtl_jax.export.onnx_layout import Order

CHANNELS_FIRST = (0, 2, 3, 1)  # positions of batch, height, width, channels in the input of a convolution
SPACE = (2, 3)  # the spatial axes of such an array
ARITHMETIC = ("Add", "Div", "Mul", "Sub")


class Convolution(NamedTuple):
    """A convolution with a constant kernel, after the folding so far, and the axis order of its result."""

    x: Tensor  # input array, channels first
    kernel: np.ndarray  # output channels first
    bias: np.ndarray | None
    shape: tuple[int, ...]  # of the result, channels first
    attributes: Mapping[str, Any]
    order: Order


class Scaled(NamedTuple):
    """An array, channels first, multiplied by a factor for each channel."""

    x: Tensor
    factors: np.ndarray


class Product(NamedTuple):
    """Rows times a constant matrix."""

    x: Tensor
    matrix: np.ndarray


class Sum(NamedTuple):
    """A sum over some axes of an array, which are removed."""

    x: Tensor
    axes: tuple[int, ...]


def add_convolution(graph: Graph, convolution: Convolution) -> Tensor:
    """Adds a convolution to the graph and records it for later folding."""
    scaled = graph.origins.get(convolution.x.name)
    if isinstance(scaled, Scaled) and convolution.attributes.get("group", 1) == 1:  # the zero padding stays zero
        factors = scaled.factors.reshape(1, -1, *[1] * (convolution.kernel.ndim - 2))
        convolution = convolution._replace(x=scaled.x, kernel=convolution.kernel * factors)
    weights = [convolution.kernel] if convolution.bias is None else [convolution.kernel, convolution.bias]
    dtype, attributes = convolution.kernel.dtype, convolution.attributes
    result = graph.node("Conv", convolution.x, *weights, shape=convolution.shape, dtype=dtype, **attributes)
    graph.origins[result.name] = convolution
    return result.transpose(convolution.order)


def fold(graph: Graph, name: str, inputs: Sequence[Value]) -> Tensor | None:
    """Fuses an operation with the one that computes its input; returns None where they cannot be fused."""
    if len(inputs) != 2 or (not isinstance(inputs[0], Tensor) and name not in ("add", "mul")):
        return None
    dividend, divisor = inputs
    if name == "div" and isinstance(dividend, Tensor) and isinstance(divisor, Tensor):
        return _mean_of_dynamic_count(graph, dividend, divisor)
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    constants = [value for value in inputs if isinstance(value, np.ndarray)]
    if not len(tensors) == len(constants) == 1:
        return None
    (x,), (constant,) = tensors, constants
    if name == "div" and constant.size == 1 and (mean := _mean(graph, x, constant.item())) is not None:
        return mean
    origin = graph.origins.get(x.name)
    if name in ("add", "mul") and isinstance(origin, Convolution):
        return _fold_into_convolution(graph, origin, name, _per_channel(x, constant, origin.kernel.shape[0]))
    if name == "add" and isinstance(origin, Product) and constant.size == origin.matrix.shape[1] == constant.shape[-1]:
        bias = constant.reshape(-1)
        return graph.node("Gemm", origin.x, origin.matrix, bias, shape=x.shape, dtype=x.dtype)
    return None


def add_product(graph: Graph, x: Value, y: Value, shape: layout.Shape, dtype: Any) -> Tensor:
    """Adds a matrix product, and records a constant matrix for a bias that may follow."""
    result = graph.node("MatMul", x, y, shape=shape, dtype=dtype)
    if isinstance(x, Tensor) and isinstance(y, np.ndarray) and len(x.shape) == len(y.shape) == 2:
        graph.origins[result.name] = Product(x, y)
    return result


def _fold_into_convolution(
    graph: Graph, convolution: Convolution, name: str, number: np.ndarray | None
) -> Tensor | None:
    if number is None:
        return None
    bias = convolution.bias
    if name == "add":
        return add_convolution(graph, convolution._replace(bias=number if bias is None else bias + number))
    kernel = convolution.kernel * number.reshape(-1, *[1] * (convolution.kernel.ndim - 1))
    return add_convolution(graph, convolution._replace(kernel=kernel, bias=None if bias is None else bias * number))


def remember_scale(graph: Graph, name: str, inputs: Sequence[Value], result: Tensor) -> None:
    """Records a result that is an array scaled per channel, so that a convolution can fold the factors."""
    if name not in ("mul", "div") or len(inputs) != 2:
        return
    x, number = inputs if isinstance(inputs[0], Tensor) else inputs[::-1]
    if (name == "div" and x is not inputs[0]) or not isinstance(x, Tensor) or not isinstance(number, np.ndarray):
        return
    if len(x.shape) == 4 and (factors := _per_channel(x, number, x.array.shape[1])) is not None:
        graph.origins[result.name] = Scaled(x.array, 1 / factors if name == "div" else factors)


def _per_channel(x: Tensor, number: np.ndarray, channels: int) -> np.ndarray | None:
    """Returns a constant as one number per channel; None where it varies along other axes."""
    if number.dtype != x.dtype:
        return None
    if number.size == 1:
        return np.broadcast_to(number.reshape(1), (channels,))
    if number.ndim != len(x.shape) or number.size != channels:
        return None
    return number.reshape(channels) if layout.stored_shape(number.shape, x.axes)[1] == channels else None


def add_sum(graph: Graph, x: Tensor, axes: Sequence[int]) -> Tensor:
    """Adds a sum over some axes to the graph and records it, so that a division can turn it into a mean."""
    array, stored_axes = x.array, tuple(sorted(x.axes[axis] for axis in axes))
    shape = [length for axis, length in enumerate(array.shape) if axis not in stored_axes]
    result = graph.node("ReduceSum", array, np.array(stored_axes, np.int64), shape=shape, dtype=x.dtype, keepdims=0)
    graph.origins[result.name] = Sum(array, stored_axes)
    return result.transpose(layout.remove_axes(x.axes, axes))


def _mean_of_dynamic_count(graph: Graph, x: Tensor, number: Tensor) -> Tensor | None:
    """As `_mean`, with a count that is known only when the model runs."""
    count = graph.counts.get(graph.reshapings.get(number.name, number).name)
    return None if count is None else _mean(graph, x, count)


def _mean(graph: Graph, x: Tensor, count: int | float) -> Tensor | None:
    """Returns a sum divided by its number of terms as a mean, also after axes of length 1 have been inserted."""
    array = x.array
    total = graph.reshapings.get(array.name, array)
    origin = graph.origins.get(total.name)
    if not isinstance(origin, Sum):
        return None
    if math.prod(origin.x.shape[axis] for axis in origin.axes) != count:
        return None
    shape = [1 if axis in origin.axes else length for axis, length in enumerate(origin.x.shape)]
    if origin.axes == SPACE and len(shape) == 4:  # runtimes compute it in the layout of convolutions
        result = graph.node("GlobalAveragePool", origin.x, shape=shape, dtype=x.dtype)
    else:
        result = graph.node("ReduceMean", origin.x, shape=shape, dtype=x.dtype, axes=list(origin.axes), keepdims=1)
    return graph.reshape(result, array.shape).transpose(x.axes)


def required_nodes(nodes: Sequence[Any], results: Iterable[str]) -> tuple[list[Any], set[str]]:
    """Returns the nodes that some results depend on, in order, and the names of their inputs."""
    names, used_nodes = set(results), []
    for node in reversed(nodes):
        if names.intersection(node.output):
            names |= input_names(node)
            used_nodes.append(node)
    return used_nodes[::-1], names


def input_names(node: Any) -> set[str]:
    """Input names of a node, including those of its subgraphs."""
    inner = [child for attribute in node.attribute for child in attribute.g.node]
    subgraph_outputs = [output.name for attribute in node.attribute for output in attribute.g.output]
    return set(node.input).union(subgraph_outputs, *map(input_names, inner))


def late_transposition(nodes: Sequence[Any], initializers: dict[str, np.ndarray], image: Tensor) -> list[Any]:
    """Moves the transposition of the image behind the arithmetic with constants of channels that follows it.

    Where a convolution follows the transposition, runtimes whose convolutions have the channels last omit it.

    Args:
        nodes: nodes in order, all of them required.
        initializers: name -> array; receives the constants with the channels last.
        image: input of the graph.
    """
    nodes = list(nodes)
    read, width = image.name, image.shape[2] if len(image.shape) == 4 else 0
    while True:
        turns = [node for node in nodes if node.op_type == "Transpose" and node.input[0] == read]
        readers = [node for turn in turns for node in nodes if turn.output[0] in input_names(node)]
        if len(turns) != 1 or len(readers) != 1 or readers[0].op_type not in ARITHMETIC:
            return nodes
        (turn,), (node,) = turns, readers
        place = 1 - list(node.input).index(turn.output[0])
        constant = initializers.get(node.input[place])
        order = next(attribute.ints for attribute in turn.attribute if attribute.name == "perm")
        if constant is None or list(order) != [0, 3, 1, 2] or constant.ndim != 4 or constant.size != constant.shape[1]:
            return nodes
        # Runtimes are faster with constants of whole rows than with those of a few channels.
        name, length = f"{node.output[0]}/constant", width if layout.is_static(width) else 1
        initializers[name] = np.tile(constant.reshape(1, 1, 1, -1), (1, 1, length, 1))
        result = f"{node.output[0]}/last"
        inputs = [read, name] if place == 1 else [name, read]
        moved = [
            onnx.helper.make_node(node.op_type, inputs, [result], result),
            onnx.helper.make_node("Transpose", [result], [node.output[0]], node.output[0], perm=list(order)),
        ]
        nodes = [each for other in nodes if other is not turn for each in (moved if other is node else [other])]
        read = result


def with_splits(model: Any) -> Any:
    """Returns a model in which one Split stands for the slices that divide an axis of a tensor."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    values = onnx.shape_inference.infer_shapes(model).graph.value_info
    shapes = {value.name: [length.dim_value for length in value.type.tensor_type.shape.dim] for value in values}
    arrays = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    nodes = list(graph.node)
    for (name, axis), parts in _slices(nodes, arrays).items():
        edges = [0, *(stop for _, stop, _ in parts)]
        length = shapes.get(name, [])[axis : axis + 1]
        if len(parts) == 1 or [start for start, _, _ in parts] != edges[:-1] or length != edges[-1:]:
            continue
        sizes = onnx.numpy_helper.from_array(np.diff(edges).astype(np.int64), f"{name}.sizes.{axis}")
        graph.initializer.append(sizes)
        outputs = [node.output[0] for _, _, node in parts]
        split = onnx.helper.make_node("Split", [name, sizes.name], outputs, f"{name}.split.{axis}", axis=axis)
        place = min(nodes.index(node) for _, _, node in parts)
        nodes[place] = split
        nodes = [node for node in nodes if not any(node is part for _, _, part in parts)]
    del graph.node[:]
    graph.node.extend(nodes)
    return result


def _slices(
    nodes: Iterable[Any], arrays: Mapping[str, np.ndarray]
) -> dict[tuple[str, int], list[tuple[int, int, Any]]]:
    """Returns the slices of one axis, by tensor and axis, as start, stop and node, in order."""
    slices: dict[tuple[str, int], list[tuple[int, int, Any]]] = {}
    for node in nodes:
        bounds = [arrays.get(name) for name in node.input[1:]] if node.op_type == "Slice" else []
        numbers = [int(array.item()) for array in bounds if array is not None and array.size == 1]
        if len(numbers) >= 3 and len(numbers) == len(bounds) and min(numbers) >= 0 and numbers[3:] in ([], [1]):
            start, stop, axis = numbers[:3]
            slices.setdefault((node.input[0], axis), []).append((start, stop, node))
    return {key: sorted(parts, key=lambda part: part[:2]) for key, parts in slices.items()}


def remove_identities(nodes: Sequence[Any], reserved: Iterable[str]) -> list[Any]:
    """Removes Identity nodes: the node that computes a result gets the new name of the result.

    Args:
        nodes: nodes in order.
        reserved: names that are not outputs of nodes: inputs and initializers.
    """
    renamed: dict[str, str] = {}
    reserved_names = set(reserved)
    for node in nodes:
        if node.op_type == "Identity" and node.input[0] not in reserved_names and node.input[0] not in renamed:
            renamed[node.input[0]] = node.output[0]
    remaining = [node for node in nodes if node.op_type != "Identity" or renamed.get(node.input[0]) != node.output[0]]
    for node in remaining:
        _rename(node, renamed)
    return remaining


def _rename(node: Any, renamed: Mapping[str, str]) -> None:
    for names in (node.input, node.output):
        names[:] = [renamed.get(name, name) for name in names]
    for attribute in node.attribute:
        for inner in attribute.g.node:
            _rename(inner, renamed)
