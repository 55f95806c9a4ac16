"""Parallel passes of an ONNX network as one: chains of equal layers become grouped convolutions.

Where tasks share kernels but have batch norms of their own, each task's pass has its own folded kernels, and the graph
has a chain of small operators for each task. Chains of equal layers that begin at the same tensor are computed as one
chain: its tensors hold the channels of the first task, then those of the second and so on, and its convolutions have
one group for each task. Runtimes then compute a third of the operators, each three times as large, for three tasks.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx

from mtl_jax.export.onnx_bundles import Bundle, Bundles, padded_width
from mtl_jax.export.onnx_folding import required_nodes
from mtl_jax.export.onnx_nodes import BINARY, by_depth, changed, group_count, in_order, readers, source_count
from mtl_jax.models.quantisation import MAX_LEVEL

LARGEST_REPEATED = 4096  # weights of a kernel that is stored for each of the passes that share it
LARGEST_PADDING = 2  # of the channels of joined convolutions that have different numbers of them
QUANTISATION = ("DequantizeLinear", "QuantizeLinear")
UNARY = ("GlobalAveragePool", "HardSigmoid", "HardSwish", "Relu", "Resize", "Sigmoid")

helper: Any = onnx.helper
Signature = tuple[Any, ...]


class Kernel(NamedTuple):
    """Kernel of a convolution."""

    name: str  # of the initializer
    array: np.ndarray  # output channels first
    scale: np.ndarray | None  # of each output channel, where the array has integers


def with_joined_passes(model: Any) -> Any:
    """Returns a model that computes parallel chains of equal layers as one.

    Args:
        model: ONNX, the channels first.
    """
    graph = model.graph
    weights = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    joined = _join(graph, weights)
    if not joined.bundles.by_member:
        return model
    outputs = [output.name for output in graph.output]
    kept = [joined.replaced.get(node.output[0], node) for node in graph.node]
    nodes, names_read = required_nodes(in_order(joined.bundles.remaining(kept, outputs)), outputs)
    arrays = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items() if name in names_read]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(arrays)
    onnx.checker.check_model(result)
    return result


def parallel_convolutions(model: Any) -> dict[str, str]:
    """Returns the names of convolutions that are computed as one, with the name of the first of each group."""
    weights = {value.name: onnx.numpy_helper.to_array(value) for value in model.graph.initializer}
    names = {node.output[0]: node.name for node in model.graph.node if node.op_type == "Conv"}
    bundles = _join(model.graph, weights).bundles
    return {name: names[bundles[output].members[0]] for output, name in names.items() if output in bundles}


def _join(graph: Any, weights: dict[str, np.ndarray]) -> _Joined:
    joined = _Joined(graph.node, weights)
    for nodes in by_depth(graph.node):
        for group in joined.groups(nodes):
            joined.join(group)
    joined.bundles.drop_single_layers()
    return joined


class _Joined:
    """The joined layers so far."""

    def __init__(self, nodes: Sequence[Any], weights: dict[str, np.ndarray]) -> None:
        self.weights = weights
        self.kernels = {name: Kernel(name, array, None) for name, array in weights.items()}
        for node in nodes:
            if node.op_type == "DequantizeLinear" and node.input[0] in weights:
                kernel = Kernel(node.input[0], weights[node.input[0]], weights[node.input[1]])
                self.kernels[node.output[0]] = kernel
        self.makers = {name: node for node in nodes for name in node.output}
        self.operators = readers(nodes)  # tensor -> the operators that read it
        self.replaced: dict[str, Any] = {}  # output of a node that is in no bundle -> the node in its place
        self.bundles = Bundles(weights)

    def groups(self, nodes: Sequence[Any]) -> list[list[Any]]:
        """Returns the nodes of one depth that can be one node, in groups."""
        groups: dict[Any, list[Any]] = collections.defaultdict(list)
        seen: collections.Counter[Any] = collections.Counter()
        for node in nodes:
            signature = self._signature(node)
            if signature is None:
                continue
            sources = tuple(node.input[: source_count(node)])
            # Of two equal layers that read the same member of a bundle, each is part of another chain.
            repeat = seen[signature, sources] if sources[0] in self.bundles else 0
            seen[signature, sources] += 1
            groups[signature, repeat].append(node)
        return [part for group in groups.values() for part in self._of_similar_width(group) if len(part) > 1]

    def _of_similar_width(self, group: list[Any]) -> list[list[Any]]:
        """Divides convolutions by their number of outputs, where these differ so much that most would be padding."""
        if group[0].op_type != "Conv":
            return [group]
        by_count: dict[int, list[Any]] = collections.defaultdict(list)
        for node in group:
            by_count[len(self.kernels[node.input[1]].array)].append(node)
        needed = sum(padded_width([count]) * len(part) for count, part in by_count.items())
        is_similar = padded_width(by_count) * len(group) <= LARGEST_PADDING * needed
        return [group] if is_similar else list(by_count.values())

    def _signature(self, node: Any) -> Signature | None:
        """Returns what parallel layers have in common; None of a node that cannot be joined."""
        attributes = tuple(sorted(str(attribute) for attribute in node.attribute))
        sources = [self.bundles[name].name if name in self.bundles else name for name in node.input]
        if node.op_type == "Conv":
            kernel, biases = self.kernels.get(node.input[1]), [self.weights.get(name) for name in node.input[2:]]
            if kernel is None or any(bias is None for bias in biases) or not self._is_joinable(node, kernel.array):
                return None
            form = *kernel.array.shape[1:], str(kernel.array.dtype)
            if node.input[0] in self.bundles:
                return node.op_type, attributes, sources[0], form
            # Layers that read the same tensor are distinguished by the operators that follow.
            following = self.operators.get(node.output[0], ())
            return node.op_type, attributes, sources[0], form, following, len(kernel.array)
        if any(name not in self.bundles for name in node.input[: source_count(node)]):
            return None
        if node.op_type in QUANTISATION:  # each member may have a scale of its own
            return node.op_type, attributes, sources[0]
        return (node.op_type, attributes, *sources) if node.op_type in (*UNARY, *BINARY) else None

    def _is_joinable(self, node: Any, kernel: Any) -> bool:
        groups = group_count(node)
        return groups == 1 or (node.input[0] in self.bundles and groups == len(kernel) and kernel.shape[1] == 1)

    def join(self, group: list[Any]) -> None:
        """Replaces parallel layers by one, if the tensors that they read follow each other in one."""
        first = group[0]
        if first.op_type == "Conv" and first.input[0] not in self.bundles:
            self._convolve(group, None)
            return
        group = sorted(group, key=lambda node: self.bundles[node.input[0]].members.index(node.input[0]))
        sources = [
            self.bundles.holding([node.input[position] for node in group]) for position in range(source_count(first))
        ]
        if any(source is None for source in sources) or len({source.width for source in sources if source}) > 1:
            return
        if first.op_type == "Conv":
            self._convolve(group, sources[0])
        else:
            self._apply(group, [source for source in sources if source is not None])

    def _apply(self, group: list[Any], sources: list[Bundle]) -> None:
        """Adds an operator that computes every channel by itself."""
        first = group[0]
        bundle = Bundle(_name(group), _outputs(group), sources[0].channels, sources[0].width)
        names, attributes = list(first.input[source_count(first) :]), {}
        if first.op_type in QUANTISATION:
            names, attributes = self._scales(group, bundle, sources[0]), {"axis": 1}
        node = changed(first, [*(source.name for source in sources), *names], bundle.name, **attributes)
        self.bundles.add(bundle, [node], sources)

    def _scales(self, group: list[Any], bundle: Bundle, source: Bundle) -> list[str]:
        """Adds the scale and the zero point with which the tensors of a bundle are quantised; returns their names."""
        if group[0].op_type == "DequantizeLinear":
            return list(self.bundles.nodes[source.name][0].input[1:])
        pairs = [[self.weights[name] for name in node.input[1:]] for node in group]
        for place in range(1, len(pairs)):  # of every two neighbours, because a part of the bundle may be read alone
            if np.unique(np.concatenate([np.ravel(zeros) for _, zeros in pairs[place - 1 : place + 1]])).size == 1:
                pairs[place] = _with_next_zero_point(*pairs[place])
        levels = [
            np.concatenate([_padded_by_last(*each, bundle.width) for each in zip(values, bundle.channels, strict=True)])
            for values in zip(*pairs, strict=True)
        ]
        names = [f"{bundle.name}.scale", f"{bundle.name}.zero"]
        self.weights.update({name: np.asarray(array) for name, array in zip(names, levels, strict=True)})
        return names

    def _convolve(self, group: list[Any], source: Bundle | None) -> None:
        """Adds a convolution of the tensor that all layers of a group read, or of those that a bundle holds."""
        first, kernels = group[0], [self.kernels[node.input[1]] for node in group]
        if source is None and kernels[0].scale is not None:
            self._set_apart_zero_points(first.input[0], kernels[0].array.shape[1])
        is_depthwise = group_count(first) > 1
        channels = tuple(len(kernel.array) for kernel in kernels)
        width = source.width if source is not None and is_depthwise else padded_width(channels)
        bundle = Bundle(_name(group), _outputs(group), channels, width)
        inputs = source.width if source is not None and not is_depthwise else kernels[0].array.shape[1]
        name, kernel_nodes = self._kernel(f"{bundle.name}.kernel", kernels, (bundle.width, inputs))
        names = [source.name if source is not None else first.input[0], name]
        groups = 1 if source is None else len(group)
        node = changed(first, names, bundle.name, group=groups * (bundle.width if is_depthwise else 1))
        # onnxruntime makes one operator of a convolution between two quantisations, with one scale for each tensor.
        is_apart = kernels[0].scale is not None and set(self.operators.get(first.output[0], ())) == {"QuantizeLinear"}
        has_bias = is_apart or any(len(node.input) > 2 for node in group)
        biases = [self._bias(node, width) for node in group] if has_bias else []
        nodes = self._biased(node, biases, is_apart=is_apart)
        self.bundles.add(bundle, [*nodes, *kernel_nodes], [source] if source else [])

    def _set_apart_zero_points(self, name: str, channels: int) -> None:
        """Gives the last channel of a tensor the next zero point, if all have one.

        Convolutions whose outputs have a scale for each channel take three times as long in OpenVINO 2026.4 on
        processors with AMX, unless the zero points of their input differ: for these it has other kernels.
        """
        dequantise = self.makers.get(name)
        if dequantise is None or dequantise.op_type != "DequantizeLinear" or np.ndim(self.weights[dequantise.input[1]]):
            return
        scale, zero = (self.weights[number] for number in dequantise.input[1:])
        zeros = np.full(channels, zero)
        zeros[-1] = _next_zero_point(zero)
        numbers = {f"{name}.scale": np.full(channels, scale), f"{name}.zero": zeros}
        self.weights.update(numbers)
        for node in self.makers.values():
            if dequantise.input[0] in (*node.output, *node.input[:1]):
                self.replaced[node.output[0]] = changed(node, [node.input[0], *numbers], node.output[0], axis=1)

    def _bias(self, node: Any, width: int) -> np.ndarray:
        """Returns the bias of a convolution, padded with zeros to a width."""
        bias = self.weights[node.input[2]] if len(node.input) > 2 else np.zeros(1, np.float32)
        return _padded(bias, (width,))

    def _biased(self, node: Any, biases: Sequence[np.ndarray], *, is_apart: bool) -> list[Any]:
        """Adds the biases to a convolution, in an operator of their own if they are to be apart; returns the nodes."""
        if not biases:
            return [node]
        bias = np.concatenate(biases)
        name, output = f"{node.name}.bias", node.name
        self.weights[name] = bias.reshape(1, -1, 1, 1) if is_apart else bias
        if not is_apart:
            return [changed(node, [*node.input, name], output)]
        sums = changed(node, node.input, f"{output}.sums")
        return [sums, helper.make_node("Add", [sums.name, name], [output], output)]

    def _kernel(self, name: str, kernels: Sequence[Kernel], widths: tuple[int, int]) -> tuple[str, list[Any]]:
        """Adds the kernel of a grouped convolution; returns its name and the nodes that compute it."""
        scales = [kernel.scale for kernel in kernels if kernel.scale is not None]
        array_name = f"{name}.integers" if scales else name
        nodes = self._array(array_name, kernels, widths)
        if not scales:  # a group is all in 8 bits or all in fp32
            return name, nodes
        padded_scales = [np.pad(scale, (0, widths[0] - len(scale)), constant_values=1) for scale in scales]
        self.weights[f"{name}.scale"] = np.concatenate(padded_scales)
        inputs = [array_name, f"{name}.scale"]
        return name, [*nodes, helper.make_node("DequantizeLinear", inputs, [name], name, axis=0)]

    def _array(self, name: str, kernels: Sequence[Kernel], widths: tuple[int, int]) -> list[Any]:
        """Adds the array of a grouped convolution; returns the nodes that compute it."""
        is_shared = len({kernel.name for kernel in kernels}) == 1
        if not is_shared or kernels[0].array.size <= LARGEST_REPEATED:
            self.weights[name] = np.concatenate([_padded(kernel.array, widths) for kernel in kernels])
            return []
        part = f"{kernels[0].name}.{widths[0]}x{widths[1]}"  # stored once; runtimes repeat it as they load
        self.weights[part] = _padded(kernels[0].array, widths)
        return [helper.make_node("Concat", [part] * len(kernels), [name], name, axis=0)]


def _outputs(group: Sequence[Any]) -> tuple[str, ...]:
    return tuple(node.output[0] for node in group)


def _name(group: Sequence[Any]) -> str:
    return f"{group[0].output[0]}.x{len(group)}"


def _padded_by_last(value: np.ndarray, channels: int, width: int) -> np.ndarray:
    """Returns a value of a tensor, or of each of its channels, for every channel that it takes in a bundle."""
    return np.pad(np.broadcast_to(value, channels), (0, width - channels), mode="edge")


def _with_next_zero_point(scale: np.ndarray, zero: np.ndarray) -> list[np.ndarray]:
    """Returns a scale and a zero point of a range that includes the given one, with another zero point.

    On processors with AMX, OpenVINO 2026.4 computes 8-bit grouped 1x1 convolutions wrongly whose groups have more than
    64 channels, no multiple of 64, unless the zero points of their input differ: for these it has other kernels.
    """
    level, moved = float(np.ravel(zero)[0]), float(_next_zero_point(zero))
    widening = max(level / moved, (MAX_LEVEL - level) / (MAX_LEVEL - moved))
    return [np.asarray(scale * widening, scale.dtype), np.full_like(zero, moved)]


def _next_zero_point(zero: np.ndarray) -> int:
    level = int(np.ravel(zero)[0])
    return level + (1 if level < MAX_LEVEL / 2 else -1)


def _padded(array: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """Fills the first axes up with zeros."""
    missing = [(0, width - length) for width, length in zip(widths, array.shape, strict=False)]
    return np.pad(array, [*missing, *[(0, 0)] * (array.ndim - len(missing))])
