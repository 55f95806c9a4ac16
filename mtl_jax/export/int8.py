"""8-bit ONNX export: post-training quantisation with calibrated ranges and a scale for each kernel channel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx

from mtl_jax.export.formats import OnnxNetwork, open_session, require_packages, served_onnx, translate
from mtl_jax.export.network import TO_NCHW, Form
from mtl_jax.export.onnx_model import remove_outputs
from mtl_jax.export.onnx_parallel import parallel_convolutions
from mtl_jax.export.rounding import Limits, channelwise_inputs, quantisable_layers, quantise, scale_and_zero_point
from mtl_jax.models.quantisation import MAX_LEVEL
from mtl_jax.workdir.trained import Trained

TOLERANCE = 0.15  # of the raw outputs, relative to their spread; a lower value leaves more layers in fp32
SEARCH_IMAGES = 3  # images for the selection of layers
VALUES = 8192  # sampled from each array and image
CUTS = np.linspace(1.0, 0.1, 19)  # candidate clipping limits, relative to the largest magnitude
GROUPS = 28  # of neighbouring layers, for the selection


class Samples(NamedTuple):
    """Values of a tensor on some images: at random positions, and the smallest and largest of each channel at all."""

    values: np.ndarray  # f32[positions, channels]
    low: np.ndarray  # f32[channels]
    high: np.ndarray  # f32[channels]


class Calibration(NamedTuple):
    """Statistics of the inputs of convolutions on some images, by tensor name."""

    ranges: Mapping[str, tuple[Limits, Limits]]  # of a tensor, or of each of its channels
    means: Mapping[str, np.ndarray]  # f32[channels]


class Quantised(NamedTuple):
    """A network in 8 bits, and the number of its quantised convolutions."""

    converted: OnnxNetwork
    candidate_count: int  # convolutions that may be quantised
    quantised_count: int  # convolutions that are quantised


def quantised_network(
    network: Trained, image: jax.ShapeDtypeStruct, form: Form, pixels: Sequence[np.ndarray]
) -> Quantised:
    """Quantises a network after training.

    Args:
        network: network to export.
        image: input shape, channels last.
        form: decoding and layout.
        pixels: calibration images, [1, height, width, 3] each.

    Raises:
        UserError: a package is not installed, or the network uses an operation that is not translated.
    """
    require_packages("onnx")
    separate, network, any_batch = translate(network, image, form)
    calibration, selected = calibrated_layers(separate, form, pixels, tolerance=TOLERANCE)
    quantised = quantise(separate, calibration.ranges, selected, calibration.means)
    converted = served_onnx(quantised, network, form, any_batch=any_batch)
    return Quantised(converted, len(quantisable_layers(separate)[0]), len(selected))


def calibrated_layers(
    model: Any, form: Form, pixels: Sequence[np.ndarray], *, tolerance: float
) -> tuple[Calibration, list[str]]:
    """Calibrates an fp32 model on images, and selects the convolutions to quantise.

    Args:
        model: from `translate`.
        form: decoding and layout of the model.
        pixels: calibration images, [1, height, width, 3] each.
        tolerance: as for `select_layers`.
    """
    is_nhwc = form.layout == "nhwc"
    file_images = [array if is_nhwc else np.ascontiguousarray(array.transpose(TO_NCHW)) for array in pixels]
    calibration = calibrate(model, sample_inputs(model, file_images))
    selected, _ = select_layers(model, calibration, np.concatenate(file_images[:SEARCH_IMAGES]), tolerance=tolerance)
    return calibration, selected


def sample_inputs(model: Any, batches: Iterable[np.ndarray]) -> dict[str, Samples]:
    """Samples the inputs of all convolutions, by name.

    Args:
        model: fp32 model.
        batches: images in the layout of the model.
    """
    names = list(dict.fromkeys(node.input[0] for node in model.graph.node if node.op_type == "Conv"))
    inputs = {value.name for value in model.graph.input}
    run = open_session(_expose_outputs(model, [name for name in names if name not in inputs]).SerializeToString())
    generator, samples = np.random.default_rng(0), {name: [] for name in names}
    for pixels in batches:
        values_by_name = {**run(pixels), **dict.fromkeys(inputs, pixels)}
        for name in names:
            channels = values_by_name[name].shape[1]
            values = np.moveaxis(values_by_name[name], 1, -1).reshape(-1, channels)
            chosen = values[generator.permutation(len(values))[: max(VALUES // channels, 1)]]
            samples[name].append(Samples(chosen, values.min(axis=0), values.max(axis=0)))
    return {
        name: Samples(
            np.concatenate([each.values for each in of_images]),
            np.min([each.low for each in of_images], axis=0),
            np.max([each.high for each in of_images], axis=0),
        )
        for name, of_images in samples.items()
    }


def calibrate(model: Any, samples: Mapping[str, Samples]) -> Calibration:
    """Returns the ranges and means of the inputs of all convolutions; those of depthwise ones by channel.

    Args:
        model: fp32 model.
        samples: from `sample_inputs`.
    """
    by_channel = channelwise_inputs(model)
    ranges = {
        name: (of_input.low, of_input.high) if name in by_channel else quantisation_limits(of_input.values)
        for name, of_input in samples.items()
    }
    return Calibration(ranges, {name: of_input.values.mean(axis=0) for name, of_input in samples.items()})


def quantisation_limits(values: np.ndarray) -> tuple[float, float]:
    """Returns the clipping range with the smallest mean squared error of 8-bit rounding."""
    low, high, magnitude = float(values.min()), float(values.max()), float(np.abs(values).max())
    limits_by_error: dict[float, tuple[float, float]] = {}
    for share in map(float, CUTS):
        limit = max(low, -share * magnitude), min(high, share * magnitude)
        scale, zero = scale_and_zero_point(*limit)
        rounded = (np.clip(np.rint(values / scale) + zero, 0, MAX_LEVEL) - zero) * scale
        limits_by_error.setdefault(float(((rounded - values) ** 2).mean()), limit)
    return limits_by_error[min(limits_by_error)]


def select_layers(
    model: Any, calibration: Calibration, pixels: np.ndarray, *, tolerance: float
) -> tuple[list[str], float]:
    """Selects the convolutions to quantise; returns their names and the largest error of the raw outputs.

    The error of each group of neighbouring layers is measured alone. Groups are returned to fp32 one by one, always the
    one with the largest error on the currently worst task, until every task is within the tolerance; then single layers
    of them are quantised again.

    Args:
        model: fp32 model.
        calibration: of the inputs of the convolutions.
        pixels: training images in the layout of the model.
        tolerance: largest error of a task's raw outputs, relative to their spread.
    """
    names, output_names = quantisable_layers(model)
    heads = _expose_outputs(model, output_names)
    expected = open_session(heads.SerializeToString())(pixels)

    first_of = parallel_convolutions(model)  # what files compute as one is quantised as one
    layer_of = {name: first_of.get(name, name) for name in names}

    def errors(layers: Sequence[str]) -> np.ndarray:
        selected = [name for name in names if layer_of[name] in set(layers)]
        quantised = quantise(heads, calibration.ranges, selected, calibration.means)
        outputs = open_session(quantised.SerializeToString())(pixels)
        return np.array([_relative_error(expected[name], outputs[name]) for name in output_names])

    layers, error = select_within_tolerance(errors, list(dict.fromkeys(layer_of.values())), tolerance=tolerance)
    return [name for name in names if layer_of[name] in set(layers)], error


def select_within_tolerance(
    errors: Callable[[Sequence[str]], np.ndarray], names: Sequence[str], *, tolerance: float
) -> tuple[list[str], float]:
    """Selects layers to quantise by a function of errors; returns their names and the largest error of a task.

    Groups of neighbouring layers are returned to fp32, as `select_layers` says. Of their layers, from the last to the
    first, those are quantised again with which every task stays within the tolerance.

    Args:
        errors: names of quantised layers -> error of each task.
        names: names of all layers, in network order.
        tolerance: largest error of a task.
    """
    selected, total = list(names), errors(names)
    if total.max() <= tolerance:
        return selected, float(total.max())
    groups = [group.tolist() for group in np.array_split(np.array(names), GROUPS) if group.size]
    errors_alone = [errors(group) for group in groups]
    while total.max() > tolerance and groups:
        place = int(np.argmax([group_errors[total.argmax()] for group_errors in errors_alone]))
        removed = set(groups.pop(place))
        errors_alone.pop(place)
        selected = [name for name in selected if name not in removed]
        total = errors(selected)
    for name in reversed([name for name in names if name not in selected]):
        chosen = {*selected, name}
        extended = [each for each in names if each in chosen]
        if (error := errors(extended)).max() <= tolerance:
            selected, total = extended, error
    return selected, float(total.max())


def _expose_outputs(model: Any, names: Sequence[str]) -> Any:
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    kind = onnx.TensorProto.FLOAT
    extended.graph.output.extend(onnx.helper.make_tensor_value_info(name, kind, None) for name in names)
    return remove_outputs(extended, lambda name: name not in names)


def _relative_error(expected: np.ndarray, outputs: np.ndarray) -> float:
    """Root mean square error relative to the standard deviation of each channel, averaged over the channels."""
    axes = tuple(axis for axis in range(expected.ndim) if axis != 1)
    return float(np.sqrt((((expected - outputs) ** 2).mean(axis=axes) / (expected.var(axis=axes) + 1e-6)).mean()))
