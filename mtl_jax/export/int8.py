"""An ONNX network that computes in eight bits: ranges from training images, a scale for each channel of a kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx

from mtl_jax.export.equalising import Samples, equalised
from mtl_jax.export.formats import Exported, Run, as_onnx, require_packages, session, unserved, with_channels_last
from mtl_jax.export.network import TO_NCHW, Form
from mtl_jax.export.onnx_model import without_outputs
from mtl_jax.export.rounding import layers, quantised, whole_scale
from mtl_jax.workdir.trained import Trained

TOLERANCE = 0.15  # of what tasks read last, relative to its spread; less leaves more in fp32, and the file larger
SEARCHED = 3  # images that the layers are tried on
VALUES = 8192  # of each array that are looked at in an image
CUTS = np.linspace(1.0, 0.1, 19)  # of the largest value, which are tried as limits
GROUPS = 28  # of neighbouring layers, tried one after another


class Quantised(NamedTuple):
    """A file in eight bits, and what is in it."""

    exported: Exported
    check: Run  # the file, with what tasks put out
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
    made = as_onnx(network, image, form)
    turned = [each if form.layout == "nhwc" else np.ascontiguousarray(each.transpose(TO_NCHW)) for each in pixels]
    model, found = equalised(made.whole, observed(made.whole, turned))
    ranges = {name: limits(each) for name, each in found.items()}
    chosen, error = searched(model, ranges, np.concatenate(turned[:SEARCHED]))
    whole = quantised(model, ranges, chosen)
    path = folder / "model.int8.onnx"
    onnx.save(without_outputs(whole, unserved(form)), path)
    run, check = (with_channels_last(session(each), form) for each in (str(path), whole.SerializeToString()))
    exported = Exported(path, run, check, made.network, made.any_batch)
    return Quantised(exported, check, len(layers(model)[0]), len(chosen), error)


def observed(model: Any, batches: Iterable[np.ndarray]) -> Samples:
    """Returns what convolutions read, by name, at some places of some images.

    Args:
        model: fp32.
        batches: images, laid out as the model takes them, the channels first behind.
    """
    names = list(dict.fromkeys(node.input[0] for node in model.graph.node if node.op_type == "Conv"))
    given = {each.name for each in model.graph.input}
    run = session(_with_outputs(model, [name for name in names if name not in given]).SerializeToString())
    draw, kept = np.random.default_rng(0), {name: [] for name in names}
    for pixels in batches:
        found = {**run(pixels), **dict.fromkeys(given, pixels)}
        for name in names:
            channels = found[name].shape[1]
            values = np.moveaxis(found[name], 1, -1).reshape(-1, channels)
            kept[name].append(values[draw.permutation(len(values))[: max(VALUES // channels, 1)]])
    return {name: np.concatenate(each) for name, each in kept.items()}


def limits(values: np.ndarray) -> tuple[float, float]:
    """Returns between which values 256 numbers spread, so that rounding them and cutting off the rest changes least."""
    low, high, most = float(values.min()), float(values.max()), float(np.abs(values).max())
    found: dict[float, tuple[float, float]] = {}
    for share in map(float, CUTS):
        limit = max(low, -share * most), min(high, share * most)
        scale, zero = whole_scale(*limit)
        rounded = (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale
        found.setdefault(float(((rounded - values) ** 2).mean()), limit)
    return found[min(found)]


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

    chosen, whole = names, errors(names)
    if whole.max() <= tolerance:
        return chosen, float(whole.max())
    groups = [each.tolist() for each in np.array_split(np.array(names), GROUPS) if each.size]
    alone = [errors(group) for group in groups]
    while whole.max() > tolerance and groups:
        place = int(np.argmax([each[whole.argmax()] for each in alone]))
        gone = set(groups.pop(place))
        alone.pop(place)
        chosen = [name for name in chosen if name not in gone]
        whole = errors(chosen)
    return chosen, float(whole.max())


def _with_outputs(model: Any, names: Sequence[str]) -> Any:
    more = onnx.ModelProto()
    more.CopyFrom(model)
    more.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    return without_outputs(more, lambda name: name not in names)


def _apart(expected: np.ndarray, found: np.ndarray) -> float:
    """The size of a difference relative to the spread, of each channel by itself: offsets as well as logits."""
    axes = tuple(axis for axis in range(expected.ndim) if axis != 1)
    return float(np.sqrt((((expected - found) ** 2).mean(axis=axes) / (expected.var(axis=axes) + 1e-6)).mean()))
