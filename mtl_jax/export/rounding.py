"""8-bit quantisation of ONNX nodes by QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx

from mtl_jax.export.network import OUTPUTS
from mtl_jax.export.onnx_folding import required_nodes
from mtl_jax.export.onnx_nodes import changed, group_count, readers, source_count
from mtl_jax.models.quantisation import MAX_LEVEL

Limits = float | np.ndarray  # of a tensor, or f32[channels]
POOLED = ("Conv", "HardSwish", "Mul", "Relu", "Sigmoid")  # operators whose outputs are of one cell if their inputs are
FUSED = ("Relu", "Clip")  # operators that onnxruntime makes part of a convolution in 8 bits

MIN_STORED_SIZE = 8192  # weights; smaller kernels of fp32 convolutions are stored in fp32
EQUAL_SHARE = 0.99  # of the integers of two kernels that differ by norm factors only; the remainder rounds differently


def quantisable_layers(model: Any) -> tuple[list[str], list[str]]:
    """Returns the names of the convolutions that may be quantised, in order, and the raw output names.

    Excluded are convolutions of channel weights, which have one cell as input and take no time. What a convolution
    reads is rounded, not its outputs: boxes and scores keep their scales.
    """
    outputs = [output.name for output in model.graph.output if output.name.endswith(f"/{OUTPUTS}")]
    nodes, _ = required_nodes(model.graph.node, outputs)
    upstream: set[str] = set()  # names of tensors that a convolution depends on
    names, last_outputs = [], []
    for node in reversed(nodes):
        has_successor = bool(upstream.intersection(node.output))
        if has_successor or node.op_type == "Conv":
            upstream.update(node.input)
        if node.op_type == "Conv":
            names.append(node.name)
            last_outputs += [] if has_successor else [node.output[0]]
    pooled = pooled_convolutions(nodes)
    return [name for name in names[::-1] if name not in pooled], last_outputs


def pooled_convolutions(nodes: Sequence[Any]) -> set[str]:
    """Returns the names of the convolutions of globally pooled features."""
    cells, names = set(), set()
    for node in nodes:
        sources = node.input[: source_count(node)]
        is_of_cells = node.op_type in POOLED and sources and all(name in cells for name in sources)
        if node.op_type == "GlobalAveragePool" or is_of_cells:
            cells.update(node.output)
            if node.op_type == "Conv":
                names.add(node.name)
    return names


def channelwise_inputs(model: Any) -> set[str]:
    """Returns the inputs of depthwise convolutions that may be rounded with a scale for each channel.

    Excluded are inputs that other convolutions read too, and those of chains of convolutions: onnxruntime makes one
    operator of a convolution between two roundings, which takes one scale for each tensor.
    """
    origins: dict[str, str] = {}  # output of fused operators -> what the first of them reads

    def origin(name: str) -> str:
        return origins.get(name, name)

    for node in model.graph.node:
        if node.op_type in FUSED:
            origins[node.output[0]] = origin(node.input[0])
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    outputs = {node.output[0] for node in convolutions}
    sources = {origin(node.input[0]) for node in convolutions}
    excluded = {
        node.input[0]
        for node in convolutions
        if group_count(node) == 1 or node.output[0] in sources or origin(node.input[0]) in outputs
    }
    return {node.input[0] for node in convolutions} - excluded


def quantise(
    model: Any,
    ranges: Mapping[str, tuple[Limits, Limits]],
    names: Iterable[str],
    means: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Any:
    """Returns a model with some convolutions in 8 bits.

    Their inputs pass through QuantizeLinear and DequantizeLinear; kernels are stored as integers, with a scale for each
    output channel. Runtimes fuse a convolution with the rounding of its inputs; its outputs are rounded by the next
    convolution, after sums and activations. Large kernels of other convolutions are stored as integers too. Biases make
    up for what the rounding of kernels adds to the outputs on average.

    Args:
        model: fp32 model.
        ranges: minimum and maximum of the inputs of convolutions, by tensor name; of a tensor or of each channel.
        names: names of the convolutions; inputs that are rounded already stay unchanged.
        means: of the inputs of convolutions, f32[channels] by tensor name; without one a bias stays as it is.

    References:
        Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019 (means there from
        batch norms, here of images). Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference",
        2018 (scales by channel).
    """
    selected, draft = set(names), _Draft(ranges)
    kernels = {node.name: node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    arrays = {initializer.name: onnx.numpy_helper.to_array(initializer) for initializer in model.graph.initializer}
    stored, rounded = {*selected, *pooled_convolutions(model.graph.node)}, _rounded_names(model)
    stored.update(name for name in quantisable_layers(model)[0] if arrays[kernels[name]].size >= MIN_STORED_SIZE)
    for node in model.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if node.name in selected and node.input[0] not in rounded:
            copy.input[0] = draft.rounded(node.input[0])
        if node.name in stored:
            kernel = arrays[node.input[1]]
            copy.input[1], rounded_kernel = draft.kernel(node.name, kernel)
            if node.input[0] in means:
                shift = _mean_outputs(kernel - rounded_kernel, means[node.input[0]], group_count(node))
                bias = arrays[node.input[2]] if len(node.input) > 2 else np.float32(0)
                del copy.input[2:]
                copy.input.append(draft.array(f"{node.name}/bias", np.asarray(bias + shift, np.float32)))
        draft.nodes.append(copy)
    return draft.build(model)


def quantised_convolutions(model: Any) -> list[str]:
    """Returns the names of the convolutions with rounded inputs."""
    rounded = _rounded_names(model)
    return [node.name for node in model.graph.node if node.op_type == "Conv" and node.input[0] in rounded]


def _rounded_names(model: Any) -> set[str]:
    return {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}


def with_own_parameters(model: Any) -> Any:
    """Returns a model that stores 8-bit kernels and biases for each convolution, and converts kernels by Cast and Mul.

    Of convolutions that read the same integers, OpenVINO computes all in fp32, and it adds a bias that several read
    apart. onnxruntime computes Cast and Mul of constants once, as it loads the file, but DequantizeLinear at every
    call, which takes longer than the convolutions. Kernels of convolutions between two roundings keep it: these are
    8-bit operators of onnxruntime. What nothing reads any more stays among the initializers.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph: Any = result.graph
    arrays = {value.name: value for value in graph.initializer}
    constants = {*arrays, *(node.output[0] for node in graph.node if set(node.input) <= arrays.keys())}
    between_roundings, read = _kernels_between_roundings(model.graph.node), set()

    def own(name: str, reader: str) -> str:
        """Returns the name of a constant of one reader."""
        if name not in read or name not in arrays:
            read.add(name)
            return name
        copy = onnx.TensorProto()
        copy.CopyFrom(arrays[name])
        copy.name = f"{reader}/{name}"
        graph.initializer.append(copy)
        return copy.name

    del graph.node[:]
    for node in model.graph.node:
        name = node.output[0]
        if node.op_type == "Conv" and len(node.input) > 2:
            graph.node.append(changed(node, [*node.input[:2], own(node.input[2], name)], name))
        elif node.op_type != "DequantizeLinear" or node.input[0] not in constants:
            graph.node.append(node)
        elif name in between_roundings:
            graph.node.append(changed(node, [own(node.input[0], name), node.input[1]], name))
        else:
            factors = onnx.numpy_helper.to_array(arrays[node.input[1]]).reshape(-1, 1, 1, 1)
            graph.initializer.append(onnx.numpy_helper.from_array(factors, f"{name}/factors"))
            inputs, cast = [own(node.input[0], name)], f"{name}/cast"
            graph.node.append(onnx.helper.make_node("Cast", inputs, [cast], cast, to=onnx.TensorProto.FLOAT))
            graph.node.append(onnx.helper.make_node("Mul", [cast, f"{name}/factors"], [name], name))
    return result


def _kernels_between_roundings(nodes: Sequence[Any]) -> set[str]:
    """Returns the kernels of convolutions whose outputs are only rounded, after an operator of `FUSED` or not."""
    operators = readers(nodes)
    rounded = {name for name, kinds in operators.items() if set(kinds) == {"QuantizeLinear"}}
    fused = {node.input[0] for node in nodes if node.op_type in FUSED and node.output[0] in rounded}
    rounded |= {name for name in fused if len(operators[name]) == 1}
    return {node.input[1] for node in nodes if node.op_type == "Conv" and node.output[0] in rounded}


def kernel_scales(kernel: np.ndarray) -> np.ndarray:
    """Returns the scale of each output channel of a kernel, which maps its largest magnitude to 127."""
    return np.maximum(np.abs(kernel).max(axis=tuple(range(1, kernel.ndim))) / 127, 1e-9).astype(np.float32)


def scale_and_zero_point(low: Limits, high: Limits) -> tuple[np.ndarray, np.ndarray]:
    """Returns scales (f32) and zero points (u8) that map 0 to 255 to the ranges from `low` to `high`."""
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    step = (high - low) / MAX_LEVEL
    scale = np.where(step > 0, step, 1.0).astype(np.float32)
    return scale, np.clip(np.rint(np.asarray(-low, np.float32) / scale), 0, MAX_LEVEL).astype(np.uint8)


def _mean_outputs(kernel: np.ndarray, means: np.ndarray, groups: int) -> np.ndarray:
    """Returns the mean output of each channel of a convolution for inputs of some means, borders left out."""
    taps = kernel.sum(axis=(2, 3))
    inputs = means.reshape(groups, -1).repeat(len(kernel) // groups, axis=0)  # of each output channel
    return (taps * inputs).sum(axis=1)


class _Draft:
    """A quantised model under construction."""

    def __init__(self, ranges: Mapping[str, tuple[Limits, Limits]]) -> None:
        self.ranges = ranges
        self.nodes: list[Any] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.rounded_names: dict[str, str] = {}  # tensor name -> name of the rounded tensor
        self.kernels: dict[tuple[int, ...], list[str]] = {}  # shape -> names of integer kernels

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(onnx.helper.make_node(op, list(inputs), [output], output, **attributes))
        return output

    def array(self, name: str, value: np.ndarray) -> str:
        self.arrays[name] = value
        return name

    def rounded(self, name: str) -> str:
        """Adds the rounding of a tensor to 8 bits; returns the name of the rounded tensor."""
        if name not in self.rounded_names:
            scale, zero = scale_and_zero_point(*self.ranges[name])
            numbers = self.array(f"{name}/scale", scale), self.array(f"{name}/zero", zero)
            by_channel = {"axis": 1} if scale.ndim else {}
            integers = self.node("QuantizeLinear", [name, *numbers], f"{name}/whole", **by_channel)
            self.rounded_names[name] = self.node(
                "DequantizeLinear", [integers, *numbers], f"{name}/rounded", **by_channel
            )
        return self.rounded_names[name]

    def kernel(self, stem: str, kernel: np.ndarray) -> tuple[str, np.ndarray]:
        """Adds a kernel in 8 bits; returns its name and its rounded values."""
        scale = kernel_scales(kernel)
        steps = scale.reshape(-1, *[1] * (kernel.ndim - 1))
        integers = np.rint(kernel / steps).astype(np.int8)
        numbers = self.share_kernel(f"{stem}/kernel", integers), self.array(f"{stem}/kernel/scale", scale)
        name = self.node("DequantizeLinear", numbers, f"{stem}/kernel/rounded", axis=0)
        return name, self.arrays[numbers[0]] * steps

    def share_kernel(self, name: str, integers: np.ndarray) -> str:
        """Stores kernels that are equal up to rounding once: tasks share kernels and have separate norms."""
        candidates = self.kernels.setdefault(integers.shape, [])
        for candidate in candidates:
            if _nearly_equal(self.arrays[candidate], integers):
                return candidate
        candidates.append(name)
        return self.array(name, integers)

    def build(self, source: Any) -> Any:
        """Returns the model, without unused nodes and initializers."""
        model = onnx.ModelProto()
        model.CopyFrom(source)
        nodes, input_names = required_nodes(self.nodes, [value.name for value in source.graph.output])
        originals = [
            value for value in source.graph.initializer if value.name in input_names and value.name not in self.arrays
        ]
        added = {name: array for name, array in self.arrays.items() if name in input_names}
        initializers = [*originals, *(onnx.numpy_helper.from_array(array, name) for name, array in added.items())]
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(initializers)
        return model


def _nearly_equal(first: np.ndarray, second: np.ndarray) -> bool:
    difference = np.abs(first.astype(np.int16) - second)
    return bool(difference.max() <= 1 and (difference == 0).mean() >= EQUAL_SHARE)
