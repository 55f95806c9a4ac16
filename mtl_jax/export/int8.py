"""An ONNX network that computes in eight bits: ranges from training images, a scale for each channel of a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx

from mtl_jax.export.equalising import Samples, equalised
from mtl_jax.export.formats import (
    Exported,
    Translated,
    as_onnx,
    require_packages,
    session,
    unserved,
    with_channels_last,
)
from mtl_jax.export.network import TO_NCHW, Form
from mtl_jax.export.onnx_model import remove_outputs
from mtl_jax.export.rounding import layers, quantised, scale_and_zero_point
from mtl_jax.workdir.trained import Trained

TOLERANCE = 0.15  # of what tasks read last, relative to its spread; less leaves more in fp32, and the file larger
SEARCHED = 3  # images that the layers are tried on
VALUES = 8192  # of each array that are looked at in an image
CUTS = np.linspace(1.0, 0.1, 19)  # of the largest value, which are tried as limits
GROUPS = 28  # of neighbouring layers, tried one after another


class Quantised(NamedTuple):
    """A file in eight bits, and what is in it."""

    exported: Exported
    whole: int  # convolutions that may compute in eight bits
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
        pixels: training images to calibrate with, [1, height, width, 3] each.

    Raises:
        UserError: a package is not installed, or the network computes what is not translated.
    """
    require_packages("onnx")
    translated = as_onnx(network, image, form)
    turned = [image if form.layout == "nhwc" else np.ascontiguousarray(image.transpose(TO_NCHW)) for image in pixels]
    model, samples = equalised(translated.whole, observed(translated.whole, turned))
    ranges = {name: limits(values) for name, values in samples.items()}
    chosen, error = searched(model, ranges, np.concatenate(turned[:SEARCHED]))
    exported = written(translated._replace(whole=quantised(model, ranges, chosen)), folder / "model.int8.onnx", form)
    return Quantised(exported, len(layers(model)[0]), len(chosen), error)


def written(translated: Translated, path: Path, form: Form) -> Exported:
    """Writes an ONNX network with the outputs that users get.

    Args:
        translated: the network, of which `whole` is written.
        path: of the file.
        form: what the file takes and gives.
    """
    onnx.save(remove_outputs(translated.whole, unserved(form)), path)
    sources = (str(path), translated.whole.SerializeToString())
    run, check = (with_channels_last(session(source), form) for source in sources)
    return Exported(path, run, check, translated.network, translated.any_batch)


def observed(model: Any, batches: Iterable[np.ndarray]) -> Samples:
    """Returns what convolutions read, by name, at some places of some images.

    Args:
        model: fp32.
        batches: images, laid out as the model takes them, the channels first behind.
    """
    names = list(dict.fromkeys(node.input[0] for node in model.graph.node if node.op_type == "Conv"))
    inputs = {value.name for value in model.graph.input}
    run = session(_with_outputs(model, [name for name in names if name not in inputs]).SerializeToString())
    generator, samples = np.random.default_rng(0), {name: [] for name in names}
    for pixels in batches:
        values_by_name = {**run(pixels), **dict.fromkeys(inputs, pixels)}
        for name in names:
            channels = values_by_name[name].shape[1]
            values = np.moveaxis(values_by_name[name], 1, -1).reshape(-1, channels)
            samples[name].append(values[generator.permutation(len(values))[: max(VALUES // channels, 1)]])
    return {name: np.concatenate(values) for name, values in samples.items()}


def limits(values: np.ndarray) -> tuple[float, float]:
    """Returns between which values 256 numbers spread, so that rounding them and cutting off the rest changes least."""
    low, high, most = float(values.min()), float(values.max()), float(np.abs(values).max())
    limits_by_error: dict[float, tuple[float, float]] = {}
    for share in map(float, CUTS):
        limit = max(low, -share * most), min(high, share * most)
        scale, zero = scale_and_zero_point(*limit)
        rounded = (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale
        limits_by_error.setdefault(float(((rounded - values) ** 2).mean()), limit)
    return limits_by_error[min(limits_by_error)]


def searched(
    model: Any, ranges: Mapping[str, tuple[float, float]], pixels: np.ndarray, *, tolerance: float = TOLERANCE
) -> tuple[list[str], float]:
    """Returns the convolutions that may compute in eight bits, and how much they change what tasks read last.

    Each group of neighbours is tried by itself, on images. The one that most changes the task that is furthest off is
    left in fp32, one after another, until the others together change every task little enough.

    Args:
        model: fp32.
        ranges: of what they read.
        pixels: training images, laid out as the model takes them.
        tolerance: of the outputs, relative to the spread of each task's.
    """
    names, last = layers(model)
    heads = _with_outputs(model, last)
    expected = session(heads.SerializeToString())(pixels)

    def errors(chosen: Sequence[str]) -> np.ndarray:
        got = session(quantised(heads, ranges, chosen).SerializeToString())(pixels)
        return np.array([_apart(expected[name], got[name]) for name in last])

    return within(errors, names, tolerance=tolerance)


def within(
    errors: Callable[[Sequence[str]], np.ndarray], names: Sequence[str], *, tolerance: float
) -> tuple[list[str], float]:
    """Returns layers that may compute in eight bits, and the largest error of a task with them; as `searched`.

    Args:
        errors: layers -> the error of each task where these compute in eight bits.
        names: of all layers, neighbours next to each other.
        tolerance: of the errors.
    """
    chosen, total = list(names), errors(names)
    if total.max() <= tolerance:
        return chosen, float(total.max())
    groups = [group.tolist() for group in np.array_split(np.array(names), GROUPS) if group.size]
    errors_alone = [errors(group) for group in groups]
    while total.max() > tolerance and groups:
        place = int(np.argmax([group_errors[total.argmax()] for group_errors in errors_alone]))
        removed = set(groups.pop(place))
        errors_alone.pop(place)
        chosen = [name for name in chosen if name not in removed]
        total = errors(chosen)
    return chosen, float(total.max())


def _with_outputs(model: Any, names: Sequence[str]) -> Any:
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    kind = onnx.TensorProto.FLOAT
    extended.graph.output.extend(onnx.helper.make_tensor_value_info(name, kind, None) for name in names)
    return remove_outputs(extended, lambda name: name not in names)


def _apart(expected: np.ndarray, outputs: np.ndarray) -> float:
    """The size of a difference relative to the spread, of each channel by itself: offsets as well as logits."""
    axes = tuple(axis for axis in range(expected.ndim) if axis != 1)
    return float(np.sqrt((((expected - outputs) ** 2).mean(axis=axes) / (expected.var(axis=axes) + 1e-6)).mean()))
