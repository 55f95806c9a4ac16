"""Cross-layer equalisation: rescales channels to similar ranges, so that one 8-bit scale suits all of them.

The function is unchanged: the kernel that produces a channel is divided by a factor, the next one multiplied by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from mtl_jax.export.network import OUTPUTS
from mtl_jax.export.onnx_folding import required_nodes

SCALE_EQUIVARIANT = (
    "Relu",
    "GlobalAveragePool",
    "Resize",
    "MaxPool",
    "Add",
)  # operators whose output scales with their input
GATES = ("HardSigmoid", "Sigmoid")  # operators whose output multiplies channels
MIN_SPAN = 1e-3  # of the largest range; limits the factor of nearly unused channels

Samples = dict[str, np.ndarray]  # tensor name -> f32[positions, channels], inputs of a convolution


def equalise(model: Any, samples: Mapping[str, np.ndarray]) -> tuple[Any, Samples]:
    """Returns an equivalent model with channels of similar ranges, and the samples rescaled.

    Only nodes that all outputs depend on are changed: later kernels are shared by tasks and stored once.

    Args:
        model: fp32 model, channels first.
        samples: inputs of its convolutions.

    References:
        Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019. Xiao et al.,
        "SmoothQuant", 2023: factors of the inputs of a full kernel, divided between the input and the kernel.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    common = _nodes_of_all_tasks(changed)
    arrays = {initializer.name: onnx.numpy_helper.to_array(initializer) for initializer in changed.graph.initializer}
    kernels = {
        node.name: [arrays[name] for name in node.input[1:]]
        for node in changed.graph.node
        if node.op_type == "Conv" and node.name in common and all(name in arrays for name in node.input[1:])
    }
    scaled = dict(samples)
    for names in _linked_arrays(changed, arrays):
        producers = [node for node in changed.graph.node if node.output[0] in names and node.op_type == "Conv"]
        consumers = [node for node in changed.graph.node if names.intersection(node.input) and node.op_type == "Conv"]
        if not consumers or not all(_is_supported(node, kernels) for node in (*producers, *consumers)):
            continue
        spans = [np.abs(scaled[node.input[0]]).max(axis=0) for node in consumers if node.input[0] in scaled]
        factor = _factors(spans, [kernels[node.name][0] for node in consumers])
        for node in producers:
            kernels[node.name] = [array / factor.reshape(-1, *[1] * (array.ndim - 1)) for array in kernels[node.name]]
        for node in consumers:
            kernel, *bias = kernels[node.name]
            rows = (-1, 1, 1, 1) if kernel.shape[1] == 1 and _groups(node) > 1 else (1, -1, 1, 1)
            kernels[node.name] = [kernel * factor.reshape(rows), *bias]
        scaled |= {name: scaled[name] / factor for name in names if name in scaled}
    return _replace_kernels(changed, kernels), scaled


def _nodes_of_all_tasks(model: Any) -> set[str]:
    """Returns the names of the nodes that every task depends on."""
    outputs = [output.name for output in model.graph.output if output.name.endswith(f"/{OUTPUTS}")]
    nodes = [{node.name for node in required_nodes(model.graph.node, [name])[0]} for name in outputs]
    return set.intersection(*nodes) if nodes else set()


def _linked_arrays(model: Any, arrays: Mapping[str, np.ndarray]) -> list[set[str]]:
    """Returns the sets of tensors that have to share their channel factors, without those that cannot be rescaled."""
    group: dict[str, set[str]] = {}
    fixed = {value.name for value in (*model.graph.input, *model.graph.output)}
    for node in model.graph.node:
        inputs = [name for name in node.input if name and name not in arrays]
        for name in (*inputs, *node.output):
            group.setdefault(name, {name})
        gates = [name for name in inputs if _producer_type(model, name) in GATES]
        if node.op_type == "Conv":
            continue
        if node.op_type == "Mul" and len(inputs) == 2 and len(gates) == 1:
            inputs.remove(gates[0])
            fixed.add(gates[0])
        elif node.op_type not in SCALE_EQUIVARIANT or (node.op_type == "Add" and len(inputs) < 2):
            fixed.update(inputs, node.output)
            continue
        linked = set().union(*(group[name] for name in (*inputs, node.output[0])))
        group.update(dict.fromkeys(linked, linked))
    unique = {id(names): names for names in group.values()}
    return [names for names in unique.values() if not names & fixed]


def _producer_type(model: Any, name: str) -> str:
    return next((node.op_type for node in model.graph.node if name in node.output), "")


def _is_supported(node: Any, kernels: Mapping[str, Sequence[np.ndarray]]) -> bool:
    """Returns whether a convolution is full, or depthwise with equal numbers of input and output channels."""
    if node.name not in kernels:
        return False
    kernel = kernels[node.name][0]
    return _groups(node) == 1 or (kernel.shape[1] == 1 and kernel.shape[0] == _groups(node))


def _groups(node: Any) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


def _factors(spans: Sequence[np.ndarray], kernels: Sequence[np.ndarray]) -> np.ndarray:
    """Returns channel divisors: the range, or for a full kernel the root of its ratio to the kernel's range."""
    span = np.max(spans, axis=0)
    span = np.maximum(span / (span.max() or 1.0), MIN_SPAN)
    full = [np.abs(kernel).max(axis=(0, 2, 3)) for kernel in kernels if kernel.shape[1] == span.size]
    if not full:
        return span.astype(np.float32)
    kernel_span = np.max(full, axis=0)
    kernel_span = np.maximum(kernel_span / (kernel_span.max() or 1.0), MIN_SPAN)
    return np.sqrt(span / kernel_span).astype(np.float32)


def _replace_kernels(model: Any, kernels: Mapping[str, Sequence[np.ndarray]]) -> Any:
    initializers = {initializer.name: initializer for initializer in model.graph.initializer}
    for node in model.graph.node:
        for position, array in enumerate(kernels.get(node.name, ()), start=1):
            name = f"{node.name}/{position}/equal"
            initializers[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name)
            node.input[position] = name
    used = {name for node in model.graph.node for name in node.input}
    inner_nodes = [inner for node in model.graph.node for attribute in node.attribute for inner in attribute.g.node]
    used |= {name for inner in inner_nodes for name in inner.input}
    del model.graph.initializer[:]
    model.graph.initializer.extend(initializer for name, initializer in initializers.items() if name in used)
    return model
