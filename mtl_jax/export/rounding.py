"""Which nodes of an ONNX network compute in eight bits, and how that is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from mtl_jax.export.network import OUTPUTS
from mtl_jax.export.onnx_folding import required_nodes

STORED = 8192  # numbers: smaller kernels of convolutions in fp32 are stored in fp32
SAME_SHARE = 0.99  # of the numbers of two kernels that differ by a norm's factors: the others are rounded otherwise


def layers(model: Any) -> tuple[list[str], list[str]]:
    """Returns the names of the convolutions that may compute in eight bits, in their order, and what tasks read last.

    Left out are the last ones of each task, so that a box as well as a score keeps its own scale, as it is never
    rounded; and those of channel weights, which read one cell and take no time.
    """
    outputs = [output.name for output in model.graph.output if output.name.endswith(f"/{OUTPUTS}")]
    before, _ = required_nodes(model.graph.node, outputs)
    leads: set[str] = set()  # names that lead to a convolution
    inner, last = [], []
    for node in reversed(before):
        followed = bool(leads.intersection(node.output))
        if followed or node.op_type == "Conv":
            leads.update(node.input)
        if followed and node.op_type == "Conv":
            inner.append(node.name)
        elif node.op_type == "Conv":
            last.append(node.output[0])
    small = one_cell(before)
    return [name for name in inner[::-1] if name not in small], last


def one_cell(nodes: Sequence[Any]) -> set[str]:
    """Returns the names of the convolutions of a mean over the whole image."""
    cells, names = set(), set()
    for node in nodes:
        pooled = node.op_type == "GlobalAveragePool"
        if pooled or (node.input and node.input[0] in cells and node.op_type in ("Conv", "Relu", "HardSwish")):
            cells.update(node.output)
            if node.op_type == "Conv":
                names.add(node.name)
    return names


def quantised(model: Any, ranges: Mapping[str, tuple[float, float]], names: Iterable[str]) -> Any:
    """Returns a model of which some convolutions compute in eight bits.

    What they read is rounded, by QuantizeLinear and DequantizeLinear; kernels are stored in whole numbers, with a scale
    for each channel that they make. Runtimes make one operator of a convolution and the roundings before it; what it
    makes is rounded by those who read it, behind sums and activations. Large kernels of other convolutions are stored
    in whole numbers too, but for the last ones.

    Args:
        model: fp32.
        ranges: the least and the largest value of what convolutions read, by name.
        names: of the nodes; where what they read is rounded already, it stays so.
    """
    chosen, draft = set(names), _Draft(ranges)
    kernels = {node.name: node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    arrays = {initializer.name: onnx.numpy_helper.to_array(initializer) for initializer in model.graph.initializer}
    stored, rounded = {*chosen, *one_cell(model.graph.node)}, _rounded(model)
    stored.update(name for name in layers(model)[0] if arrays[kernels[name]].size >= STORED)
    for node in model.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if node.name in chosen and node.input[0] not in rounded:
            copy.input[0] = draft.rounded(node.input[0])
        if node.name in stored:
            copy.input[1] = draft.kernel(node.name, arrays[node.input[1]])
        draft.nodes.append(copy)
    return draft.model(model)


def in_eight_bits(model: Any) -> list[str]:
    """Returns the names of the convolutions that read rounded values."""
    rounded = _rounded(model)
    return [node.name for node in model.graph.node if node.op_type == "Conv" and node.input[0] in rounded]


def _rounded(model: Any) -> set[str]:
    return {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}


def scales(kernel: np.ndarray) -> np.ndarray:
    """Returns the scale of each channel that a kernel makes: its largest number becomes 127."""
    return np.maximum(np.abs(kernel).max(axis=tuple(range(1, kernel.ndim))) / 127, 1e-9).astype(np.float32)


def scale_and_zero_point(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Returns the scale and the number of zero, by which 0 to 255 spread from a least value to a largest."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255 or 1.0)
    return scale, np.uint8(np.clip(round(-low / scale), 0, 255))


class _Draft:
    """A model in the making."""

    def __init__(self, ranges: Mapping[str, tuple[float, float]]) -> None:
        self.ranges = ranges
        self.nodes: list[Any] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.read: dict[str, str] = {}  # a value -> the same, rounded
        self.kernels: dict[tuple[int, ...], list[str]] = {}  # by shape

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(onnx.helper.make_node(op, list(inputs), [output], output, **attributes))
        return output

    def array(self, name: str, value: np.ndarray) -> str:
        self.arrays[name] = value
        return name

    def rounded(self, name: str) -> str:
        """Adds a value, rounded to one of 256 numbers between its least and its largest."""
        if name not in self.read:
            scale, zero = scale_and_zero_point(*self.ranges[name])
            numbers = self.array(f"{name}/scale", np.asarray(scale)), self.array(f"{name}/zero", np.asarray(zero))
            integers = self.node("QuantizeLinear", [name, *numbers], f"{name}/whole")
            self.read[name] = self.node("DequantizeLinear", [integers, *numbers], f"{name}/rounded")
        return self.read[name]

    def kernel(self, stem: str, kernel: np.ndarray) -> str:
        """Adds a kernel in eight bits."""
        scale = scales(kernel)
        integers = np.rint(kernel / scale.reshape(-1, *[1] * (kernel.ndim - 1))).astype(np.int8)
        numbers = self.held(f"{stem}/kernel", integers), self.array(f"{stem}/kernel/scale", scale)
        return self.node("DequantizeLinear", numbers, f"{stem}/kernel/rounded", axis=0)

    def held(self, name: str, integers: np.ndarray) -> str:
        """Holds what is the same but for rounding once: tasks share kernels under norms of their own."""
        alike = self.kernels.setdefault(integers.shape, [])
        for other in alike:
            if _same(self.arrays[other], integers):
                return other
        alike.append(name)
        return self.array(name, integers)

    def model(self, source: Any) -> Any:
        """Returns the model; what nothing reads any more is left out."""
        model = onnx.ModelProto()
        model.CopyFrom(source)
        nodes, names_read = required_nodes(self.nodes, [value.name for value in source.graph.output])
        kept = [
            value for value in source.graph.initializer if value.name in names_read and value.name not in self.arrays
        ]
        used = {name: array for name, array in self.arrays.items() if name in names_read}
        initializers = [*kept, *(onnx.numpy_helper.from_array(array, name) for name, array in used.items())]
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(initializers)
        return model


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    apart = np.abs(one.astype(np.int16) - other)
    return bool(apart.max() <= 1 and (apart == 0).mean() >= SAME_SHARE)
