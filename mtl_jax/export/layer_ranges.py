"""Ranges of what the layers of a network read, calibrated in its ONNX translation."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx

from mtl_jax.export.formats import translate
from mtl_jax.export.int8 import calibrated_layers
from mtl_jax.export.network import Form
from mtl_jax.export.rounding import Limits, quantisable_layers
from mtl_jax.models import patterns, quantisation
from mtl_jax.workdir.trained import Trained


class LayerRanges(NamedTuple):
    """Ranges of the layers to quantise; layers and passes that read the same tensor have the same range."""

    limits: dict[str, np.ndarray]  # name of a range -> f32[2], or f32[2, channels]
    range_of: dict[str, str]  # "layer/pass" -> name of its range
    candidate_count: int  # convolutions that may be quantised
    quantised_count: int  # convolutions of the layers to quantise

    def by_layer(self, limits: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the limits of every range nested by layer and pass, as variables of the network."""
        tree: dict[str, Any] = {}
        for path, name in self.range_of.items():
            *layers, leaf = path.split("/")
            functools.reduce(lambda node, layer: node.setdefault(layer, {}), layers, tree)[leaf] = limits[name]
        return tree


def layer_ranges(
    network: Trained, image: jax.ShapeDtypeStruct, form: Form, pixels: Sequence[np.ndarray], *, tolerance: float
) -> LayerRanges:
    """Selects the layers to quantise and calibrates their ranges, as for quantisation after training.

    A layer that is applied at several levels in one pass has one range there, and is quantised at all of them, even if
    it is the last convolution of a task at some.

    Args:
        network: fp32 network.
        image: input shape, channels last.
        form: decoding and layout.
        pixels: calibration images, [1, height, width, 3] each.
        tolerance: as for `int8.select_layers`.
    """
    model, layers = _model_and_layers(network, image, form, pixels[0].shape)
    calibration, selected = calibrated_layers(model, form, pixels, tolerance=tolerance)
    candidates, _ = quantisable_layers(model)
    excluded = {layers.get(name) for name in set(candidates) - set(selected)}
    quantised = [name for name in selected if name in layers and layers[name] not in excluded]
    included = {layers[name] for name in quantised}
    tensors: dict[str, list[str]] = {}  # "layer/pass" -> what it reads
    for node in model.graph.node:
        if layers.get(node.name) in included:
            tensors.setdefault(layers[node.name], []).append(node.input[0])
    range_of = _connected(tensors)
    read: dict[str, list[str]] = {}  # name of a range -> tensors
    for layer, names in tensors.items():
        read.setdefault(range_of[layer], []).extend(names)
    limits = {name: _union([calibration.ranges[tensor] for tensor in names]) for name, names in read.items()}
    return LayerRanges(limits, range_of, len(candidates), len(quantised))


def _model_and_layers(
    network: Trained, image: jax.ShapeDtypeStruct, form: Form, shape: tuple[int, ...]
) -> tuple[Any, dict[str, str]]:
    """Translates a network with marked layers; returns the fp32 model, and {convolution: "layer/pass"}."""
    pixels = jax.ShapeDtypeStruct(shape, np.float32)
    marks = quantisation.marks(network.setup.model, network.variables, pixels, tasks=network.names)
    paths = patterns.paths(marks)
    marked = network._replace(variables={**network.variables, quantisation.MARKS: marks})
    model, *_ = translate(marked, image, form)
    arrays = {value.name: value for value in model.graph.initializer}
    sources, nodes, layers = {}, [], {}  # tensor -> (what it is the rounding of, layer)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            number = onnx.numpy_helper.to_array(arrays[node.input[1]]) * quantisation.MAX_LEVEL
            source, _ = sources.get(node.input[0], (node.input[0], ""))
            sources[node.output[0]] = source, paths[round(number.item()) - 1]
            continue
        if node.op_type == "Conv" and node.input[0] in sources:
            layers[node.name] = sources[node.input[0]][1]
        node.input[:] = [sources.get(name, (name, ""))[0] for name in node.input]
        nodes.append(node)
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    del plain.graph.node[:]
    plain.graph.node.extend(nodes)
    return plain, layers


def _connected(tensors: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Returns {layer: the first of all layers that are connected with it by tensors}."""
    first_of: dict[str, str] = {}  # of a layer or tensor
    for layer, names in tensors.items():
        linked = {first_of[name] for name in names if name in first_of}
        first = next((other for other in tensors if other in linked), layer)
        first_of |= {name: first for name, other in first_of.items() if other in linked}
        first_of |= dict.fromkeys((layer, *names), first)
    return {layer: first_of[layer] for layer in tensors}


def _union(ranges: Sequence[tuple[Limits, Limits]]) -> np.ndarray:
    """Returns the smallest range that includes some ranges: of each channel, if all of them are."""
    if not all(np.ndim(low) for low, _ in ranges):
        ranges = [(float(np.min(low)), float(np.max(high))) for low, high in ranges]
    lows, highs = zip(*ranges, strict=True)
    return np.array([np.min(lows, axis=0), np.max(highs, axis=0)], np.float32)
