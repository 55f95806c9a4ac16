"""Gives the channels that a convolution reads ranges of one size, which one scale of eight bits then fits.

The network computes the same: what makes a channel is divided by a factor, by which what reads it is multiplied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from mtl_jax.export.network import OUTPUTS
from mtl_jax.export.onnx_folding import required_nodes

ALIKE = ("Relu", "GlobalAveragePool", "Resize", "MaxPool", "Add")  # multiples of what they read make a multiple
GATES = ("HardSigmoid", "Sigmoid")  # whose result channels are multiplied by
LEAST = 1e-3  # of the largest range: a channel that is hardly used is not enlarged beyond reason

Samples = dict[str, np.ndarray]  # name -> f32[places, channels], of what a convolution reads


def equalised(model: Any, samples: Mapping[str, np.ndarray]) -> tuple[Any, Samples]:
    """Returns a model that computes the same, and samples, whose channels are more alike.

    Only what all outputs depend on is changed: above it, tasks share kernels, and a file holds these once.

    Args:
        model: fp32, the channels first.
        samples: of what its convolutions read.

    References:
        Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019. Xiao et al.,
        "SmoothQuant", 2023: factors of what a full kernel reads, which are then spread over the channel and the kernel.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    common = _read_by_all(changed)
    arrays = {initializer.name: onnx.numpy_helper.to_array(initializer) for initializer in changed.graph.initializer}
    kernels = {
        node.name: [arrays[name] for name in node.input[1:]]
        for node in changed.graph.node
        if node.op_type == "Conv" and node.name in common and all(name in arrays for name in node.input[1:])
    }
    scaled = dict(samples)
    for names in _linked(changed, arrays):
        makers = [node for node in changed.graph.node if node.output[0] in names and node.op_type == "Conv"]
        readers = [node for node in changed.graph.node if names.intersection(node.input) and node.op_type == "Conv"]
        if not readers or not all(_known(node, kernels) for node in (*makers, *readers)):
            continue
        spans = [np.abs(scaled[node.input[0]]).max(axis=0) for node in readers if node.input[0] in scaled]
        factor = _factors(spans, [kernels[node.name][0] for node in readers])
        for node in makers:
            kernels[node.name] = [array / factor.reshape(-1, *[1] * (array.ndim - 1)) for array in kernels[node.name]]
        for node in readers:
            kernel, *bias = kernels[node.name]
            rows = (-1, 1, 1, 1) if kernel.shape[1] == 1 and _groups(node) > 1 else (1, -1, 1, 1)
            kernels[node.name] = [kernel * factor.reshape(rows), *bias]
        scaled |= {name: scaled[name] / factor for name in names if name in scaled}
    return _with(changed, kernels), scaled


def _read_by_all(model: Any) -> set[str]:
    """Names of the nodes that every task depends on."""
    outputs = [output.name for output in model.graph.output if output.name.endswith(f"/{OUTPUTS}")]
    nodes = [{node.name for node in required_nodes(model.graph.node, [name])[0]} for name in outputs]
    return set.intersection(*nodes) if nodes else set()


def _linked(model: Any, arrays: Mapping[str, np.ndarray]) -> list[set[str]]:
    """Returns sets of arrays whose channels have to have the same factors, and may have some."""
    group: dict[str, set[str]] = {}
    fixed = {value.name for value in (*model.graph.input, *model.graph.output)}
    for node in model.graph.node:
        inputs = [name for name in node.input if name and name not in arrays]
        for name in (*inputs, *node.output):
            group.setdefault(name, {name})
        gates = [name for name in inputs if _made_by(model, name) in GATES]
        if node.op_type == "Conv":
            continue
        if node.op_type == "Mul" and len(inputs) == 2 and len(gates) == 1:
            inputs.remove(gates[0])
            fixed.add(gates[0])
        elif node.op_type not in ALIKE or (node.op_type == "Add" and len(inputs) < 2):
            fixed.update(inputs, node.output)
            continue
        together = set().union(*(group[name] for name in (*inputs, node.output[0])))
        group.update(dict.fromkeys(together, together))
    unique = {id(names): names for names in group.values()}
    return [names for names in unique.values() if not names & fixed]


def _made_by(model: Any, name: str) -> str:
    return next((node.op_type for node in model.graph.node if name in node.output), "")


def _known(node: Any, kernels: Mapping[str, Sequence[np.ndarray]]) -> bool:
    """Whether a convolution is full, or depthwise with as many channels as it reads."""
    if node.name not in kernels:
        return False
    kernel = kernels[node.name][0]
    return _groups(node) == 1 or (kernel.shape[1] == 1 and kernel.shape[0] == _groups(node))


def _groups(node: Any) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


def _factors(spans: Sequence[np.ndarray], kernels: Sequence[np.ndarray]) -> np.ndarray:
    """Returns what the channels are divided by: all of their range, or its root where a full kernel takes the rest."""
    span = np.max(spans, axis=0)
    span = np.maximum(span / (span.max() or 1.0), LEAST)
    full = [np.abs(kernel).max(axis=(0, 2, 3)) for kernel in kernels if kernel.shape[1] == span.size]
    if not full:
        return span.astype(np.float32)
    taken = np.max(full, axis=0)
    taken = np.maximum(taken / (taken.max() or 1.0), LEAST)
    return np.sqrt(span / taken).astype(np.float32)


def _with(model: Any, kernels: Mapping[str, Sequence[np.ndarray]]) -> Any:
    initializers = {initializer.name: initializer for initializer in model.graph.initializer}
    for node in model.graph.node:
        for place, array in enumerate(kernels.get(node.name, ()), start=1):
            name = f"{node.name}/{place}/equal"
            initializers[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name)
            node.input[place] = name
    used = {name for node in model.graph.node for name in node.input}
    inner_nodes = [inner for node in model.graph.node for attribute in node.attribute for inner in attribute.g.node]
    used |= {name for inner in inner_nodes for name in inner.input}
    del model.graph.initializer[:]
    model.graph.initializer.extend(initializer for name, initializer in initializers.items() if name in used)
    return model
