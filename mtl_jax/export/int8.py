"""An ONNX network that computes in eight bits: calibrated by onnxruntime, a scale for each channel of a kernel."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx

from mtl_jax.export.formats import Exported, Run, as_onnx, require_packages, session, unserved, with_channels_last
from mtl_jax.export.network import INPUT, OUTPUTS, TO_NCHW, Form
from mtl_jax.export.onnx_folding import needed
from mtl_jax.export.onnx_model import without_outputs
from mtl_jax.workdir.trained import Trained

# What onnxruntime and OpenVINO compute in eight bits. HardSwish stays an operator of its own, which OpenVINO fuses.
OPERATORS = ("Conv", "Add", "Mul", "Relu", "GlobalAveragePool", "Resize")
MEANS = {"moving_average": True}  # ranges are means over images: one bright pixel costs every other pixel precision
GATES = {"HardSwish": (-3.0, np.inf), "HardSigmoid": (-3.0, 3.0)}  # where they change
TOLERANCE = 0.4  # of what tasks read last, relative to its spread; less leaves more in fp32, and the file larger
SEARCHED = 2  # images that the layers are tried on
GROUPS = 28  # of neighbouring layers, tried one after another
SAME_SHARE = 0.99  # of the numbers of two kernels that differ by a norm's factors: the others are rounded otherwise


class Quantised(NamedTuple):
    """A file in eight bits, and what is in it."""

    exported: Exported
    check: Run  # the file, with what tasks put out
    whole: int  # nodes that may compute in eight bits
    chosen: int  # those that do
    error: float  # of what tasks read last, relative to its spread


def int8(
    network: Trained, folder: Path, image: jax.ShapeDtypeStruct, form: Form, pixels: Sequence[np.ndarray]
) -> Quantised:
    """Writes model.int8.onnx.

    Args:
        network: to export.
        folder: gets the file.
        image: what the function takes, the channels last.
        form: what the file takes and gives.
        pixels: images to calibrate with, [1, height, width, 3] each.

    Raises:
        UserError: a package is not installed, or the network computes what is not translated.
    """
    require_packages("onnx")
    made = as_onnx(network, image, form)
    turned = [each if form.layout == "nhwc" else np.ascontiguousarray(each.transpose(TO_NCHW)) for each in pixels]
    found = ranges(made.whole, turned)
    chosen, error = searched(made.whole, found, np.concatenate(turned[:SEARCHED]))
    whole = quantised(made.whole, found, chosen)
    path = folder / "model.int8.onnx"
    onnx.save(without_outputs(whole, unserved(form)), path)
    run, check = (with_channels_last(session(each), form) for each in (str(path), whole.SerializeToString()))
    exported = Exported(path, run, check, made.network, made.any_batch)
    return Quantised(exported, check, len(layers(made.whole)[0]), len(chosen), error)


def layers(model: Any) -> tuple[list[str], list[str]]:
    """Returns the names of the nodes that may compute in eight bits, in their order, and what tasks read last.

    The nodes lead to the last convolutions of each task and are none of these: what a task puts out keeps its own
    scale, a box as well as a score, because it is never rounded.
    """
    outputs = [each.name for each in model.graph.output if each.name.endswith(f"/{OUTPUTS}")]
    before, _ = needed(model.graph.node, outputs)
    leads: set[str] = set()  # names that lead to a convolution
    inner, last = [], []
    for node in reversed(before):
        followed = bool(leads.intersection(node.output))
        if followed or node.op_type == "Conv":
            leads.update(node.input)
        if followed and node.op_type in OPERATORS:
            inner.append(node.name)
        elif node.op_type == "Conv" and not followed:
            last.append(node.output[0])
    return inner[::-1], last


def ranges(model: Any, batches: Iterable[np.ndarray]) -> dict[str, tuple[float, float]]:
    """Returns the least and the largest value of everything that the operators read and make, over some images.

    Args:
        model: fp32.
        batches: images, laid out as the model takes them.
    """
    from onnxruntime.quantization import calibrate

    class Reader(calibrate.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> Any:
            pixels = next(self.left, None)
            return None if pixels is None else {INPUT: pixels}

    with tempfile.TemporaryDirectory() as folder:
        path, extended = Path(folder) / "model.onnx", str(Path(folder) / "extended.onnx")
        onnx.save(model, path)
        calibrator = calibrate.create_calibrator(
            path, list(OPERATORS), augmented_model_path=extended, extra_options=MEANS
        )
        calibrator.collect_data(Reader())
        found = calibrator.compute_data()
    whole = {}
    for name, value in found.items():
        low, high = (float(np.ravel(each)[0]) for each in value.range_value)
        whole[name] = (low, high)
    return whole | _cut(model, whole)


def _cut(model: Any, whole: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Returns the ranges of what only gates read that are constant beyond some value: no number is spent there."""
    readers: dict[str, list[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    gated = {name: GATES[ops[0]] for name, ops in readers.items() if len(ops) == 1 and ops[0] in GATES}
    return {
        name: (max(low, gated[name][0]), min(high, gated[name][1]))
        for name, (low, high) in whole.items()
        if name in gated
    }


def searched(
    model: Any, found: dict[str, tuple[float, float]], pixels: np.ndarray, *, tolerance: float = TOLERANCE
) -> tuple[list[str], float]:
    """Returns the nodes that may compute in eight bits, and how much they change what tasks put out.

    Each group of neighbours is tried by itself, on images; those that change the outputs most are left in fp32, one
    after another, until the others together change them little enough.

    Args:
        model: fp32.
        found: from `ranges`.
        pixels: images, laid out as the model takes them.
        tolerance: of the outputs, relative to the spread of each task's.
    """
    names, last = layers(model)
    heads = onnx.ModelProto()
    heads.CopyFrom(model)
    heads.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in last)
    heads = without_outputs(heads, lambda name: name not in last)
    expected = session(heads.SerializeToString())(pixels)

    def error(chosen: Sequence[str]) -> float:
        got = session(quantised(heads, found, chosen).SerializeToString())(pixels)
        return max(_apart(expected[name], got[name]) for name in last)

    groups = [each.tolist() for each in np.array_split(np.array(names), GROUPS) if each.size]
    worst = sorted(groups, key=error, reverse=True)
    chosen, whole = names, error(names)
    while whole > tolerance and worst:
        gone = set(worst.pop(0))
        chosen = [name for name in chosen if name not in gone]
        whole = error(chosen)
    return chosen, whole


def _apart(expected: np.ndarray, found: np.ndarray) -> float:
    """The size of a difference relative to the spread, of each channel by itself: offsets as well as logits."""
    axes = tuple(axis for axis in range(expected.ndim) if axis != 1)
    return float(np.sqrt((((expected - found) ** 2).mean(axis=axes) / (expected.var(axis=axes) + 1e-6)).mean()))


def quantised(model: Any, found: dict[str, tuple[float, float]], names: Iterable[str]) -> Any:
    """Returns a model of which some nodes compute in eight bits.

    What such nodes read and make is rounded, by QuantizeLinear and DequantizeLinear; kernels and biases are stored in
    whole numbers. Runtimes make one operator of a node and the roundings around it.

    Args:
        model: fp32.
        found: from `ranges`.
        names: of the nodes.
    """
    chosen, draft = set(names), _Draft(found)
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    before_relu = {node.input[0] for node in model.graph.node if node.op_type == "Relu" and node.name in chosen}
    for node in model.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if node.name in chosen and not (node.op_type == "Relu" and node.input[0] in draft.unrounded):
            for name in node.input[: 1 if node.op_type in ("Conv", "Resize") else None]:
                draft.round(name, arrays.get(name))
        copy.input[:] = [draft.read.get(name) or name for name in node.input]
        if node.name in chosen and node.op_type == "Conv":
            draft.fold(copy, [arrays[name] for name in node.input[1:]])
        draft.nodes.append(copy)
        if node.name in chosen and node.op_type == "Conv" and node.output[0] in before_relu:
            draft.unrounded.add(node.output[0])  # rounding cuts off below zero, as Relu does: one operator
        elif node.name in chosen:
            draft.round(node.output[0])
    return draft.model(model)


class _Draft:
    """A model in the making."""

    def __init__(self, found: dict[str, tuple[float, float]]) -> None:
        self.found = dict(found)
        self.nodes: list[Any] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.read: dict[str, str] = {}  # a value -> the same, rounded
        self.scales: dict[str, float] = {}  # of rounded values
        self.unrounded: set[str] = set()

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(onnx.helper.make_node(op, list(inputs), [output], output, **attributes))
        return output

    def array(self, name: str, value: np.ndarray) -> str:
        """Holds an array, and what is the same but for rounding once: tasks share kernels under norms of their own."""
        for other, held in self.arrays.items():
            if held.dtype == value.dtype and held.shape == value.shape and _same(held, value):
                return other
        self.arrays[name] = value
        return name

    def round(self, name: str, known: np.ndarray | None = None) -> None:
        """Adds a value, rounded to one of 256 numbers between its least and its largest."""
        if name in self.read:
            return
        if known is not None:
            self.found[name] = float(known.min()), float(known.max())
        low, high = (edge(limit, 0.0) for edge, limit in zip((min, max), self.found[name], strict=True))
        scale = np.float32((high - low) / 255 or 1.0)
        zero = np.uint8(np.clip(round(-low / scale), 0, 255))
        if known is not None:
            self.arrays[name] = known
        numbers = self.array(f"{name}/scale", np.asarray(scale)), self.array(f"{name}/zero", np.asarray(zero))
        whole = self.node("QuantizeLinear", [name, *numbers], f"{name}/whole")
        self.read[name] = self.node("DequantizeLinear", [whole, *numbers], f"{name}/rounded")
        self.scales[self.read[name]] = float(scale)

    def fold(self, node: Any, weights: Sequence[np.ndarray]) -> None:
        """Stores a convolution's kernel in eight bits, a scale for each channel it makes, and its bias in 32."""
        kernel, outer = weights[0], self.scales[node.input[0]]
        scale = np.maximum(np.abs(kernel).max(axis=tuple(range(1, kernel.ndim))) / 127, np.float32(1e-9))
        if len(weights) > 1:  # a sum of 32 bits has to hold the bias of a channel that is almost nothing else
            scale = np.maximum(scale, np.abs(weights[1]) / (outer * 2.0**30))
        scale = scale.astype(np.float32)
        wholes: list[np.ndarray] = [np.rint(kernel / scale.reshape(-1, *[1] * (kernel.ndim - 1))).astype(np.int8)]
        scales = [scale]
        if len(weights) > 1:
            scales.append(scale * np.float32(outer))
            wholes.append(np.rint(weights[1].astype(np.float64) / scales[1]).astype(np.int32))
        for place, (whole, each) in enumerate(zip(wholes, scales, strict=True), start=1):
            stem = f"{node.name}/{place}"
            numbers = self.array(stem, whole), self.array(f"{stem}/scale", each)
            node.input[place] = self.node("DequantizeLinear", numbers, f"{stem}/rounded", axis=0)

    def model(self, source: Any) -> Any:
        """Returns the model; what nothing reads any more is left out."""
        model = onnx.ModelProto()
        model.CopyFrom(source)
        nodes, read = needed(self.nodes, [each.name for each in source.graph.output])
        kept = [each for each in source.graph.initializer if each.name in read and each.name not in self.arrays]
        kept += [onnx.numpy_helper.from_array(value, name) for name, value in self.arrays.items() if name in read]
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(kept)
        return model


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype != np.int8:
        return bool(np.array_equal(one, other))
    apart = np.abs(one.astype(np.int16) - other)
    return bool(apart.max() <= 1 and (apart == 0).mean() >= SAME_SHARE)
