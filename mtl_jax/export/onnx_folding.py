"""Batch norms and biases behind a convolution become part of it, and what nothing reads is left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.export.onnx_graph import Graph, Tensor, Value


class Convolution(NamedTuple):
    """A convolution whose kernel is known, as far as it has been folded, and where the channels of its result lie."""

    x: Value  # channels first
    kernel: np.ndarray  # outputs first
    bias: np.ndarray | None
    shape: tuple[int, ...]  # of the result, channels first
    attributes: Mapping[str, Any]
    order: tuple[int, ...]  # of the axes, of the result as it is read


def convolved(graph: Graph, convolution: Convolution) -> Tensor:
    """Adds a convolution to the graph, and remembers it for what may be folded into it."""
    weights = [convolution.kernel] if convolution.bias is None else [convolution.kernel, convolution.bias]
    dtype, attributes = convolution.kernel.dtype, convolution.attributes
    found = graph.node("Conv", convolution.x, *weights, shape=convolution.shape, dtype=dtype, **attributes)
    result: Any = graph.transposed(found, convolution.order)  # no array, as it comes from a node
    graph.convolutions[result.name] = convolution
    return result


def folded(graph: Graph, name: str, inputs: Sequence[Value]) -> Tensor | None:
    """Returns a convolution times, or plus, a number for each channel as one convolution; None for all else."""
    if name not in ("mul", "add") or len(inputs) != 2:
        return None
    tensors = [each for each in inputs if isinstance(each, Tensor)]
    numbers = [each for each in inputs if isinstance(each, np.ndarray)]
    convolution = graph.convolutions.get(tensors[0].name) if len(tensors) == len(numbers) == 1 else None
    if convolution is None:
        return None
    channels = convolution.kernel.shape[0]
    (number,) = numbers
    if channels == 1 or number.ndim == 0 or number.shape[-1] != channels or number.size != channels:
        return None  # every channel is last in JAX's layout
    number, bias = number.reshape(channels), convolution.bias
    if name == "add":
        return convolved(graph, convolution._replace(bias=number if bias is None else bias + number))
    kernel = convolution.kernel * number.reshape(channels, *[1] * (convolution.kernel.ndim - 1))
    return convolved(graph, convolution._replace(kernel=kernel, bias=None if bias is None else bias * number))


def needed(nodes: Sequence[Any], results: Iterable[str]) -> tuple[list[Any], set[str]]:
    """Returns the nodes that lead to some results, in their order, and the names that they read."""
    read, kept = set(results), []
    for node in reversed(nodes):
        if read.intersection(node.output):
            read |= _reads(node)
            kept.append(node)
    return kept[::-1], read


def _reads(node: Any) -> set[str]:
    """What a node reads, inside its own graph too."""
    inner = [each for attribute in node.attribute for each in attribute.g.node]
    outer = [output.name for attribute in node.attribute for output in attribute.g.output]
    return set(node.input).union(outer, *(_reads(each) for each in inner))
