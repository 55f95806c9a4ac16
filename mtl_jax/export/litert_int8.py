"""LiteRT's file in eight bits: kernels are stored so, and what full ones are applied to is rounded as it comes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.export import check
from mtl_jax.export.formats import Exported, Run, require_packages
from mtl_jax.export.litert import converted, interpreter
from mtl_jax.export.network import OUTPUTS, Form
from mtl_jax.workdir.trained import Trained, computing_in

SMALLEST = (
    2304  # numbers: smaller kernels, those of the first layers above all, are the most sensitive and stay in fp32
)
RECIPES = {  # by operator; LiteRT is slow at depthwise convolutions in eight bits, which are computed in fp32
    "CONV_2D": "dynamic_wi8_afp32",
    "FULLY_CONNECTED": "dynamic_wi8_afp32",
    "DEPTHWISE_CONV_2D": "weight_only_wi8_afp32",
}


def litert_int8(network: Trained, folder: Path, image: jax.ShapeDtypeStruct, form: Form) -> Exported:
    """Writes model.int8.tflite, for `image`'s number of images; it needs no calibration.

    Args:
        network: to export.
        folder: gets the file.
        image: what the function takes, the channels last.
        form: what the file takes and gives.

    Raises:
        UserError: a package is not installed, or the converter refuses the network.
    """
    require_packages("litert")
    require_packages("litert int8")
    if form.layout != "nhwc":
        raise UserError("litert: expected --layout nhwc, found nchw; LiteRT computes with the channels last")
    network = computing_in(network, "float32")
    path = folder / "model.int8.tflite"
    path.write_bytes(quantised(converted(network, image, form, with_outputs=False)))
    checked = quantised(converted(network, image, form, with_outputs=True))
    return Exported(path, interpreter(path.read_bytes()), in_turn(interpreter(checked), image.shape[0]), network)


def quantised(model: bytes) -> bytes:
    """Returns a file of LiteRT in eight bits, with a scale for each channel that a kernel makes."""
    library = importlib.import_module("ai_edge_quantizer.recipe")
    rules = []
    for operator, recipe in RECIPES.items():
        (rule,) = getattr(library, recipe)()
        rules.append(rule | {"operation": operator, "op_config": rule["op_config"] | {"min_weight_elements": SMALLEST}})
    quantizer: Any = importlib.import_module("ai_edge_quantizer.quantizer")
    return bytes(quantizer.Quantizer(model, rules).quantize().quantized_model)


def in_turn(run: Run, count: int) -> Run:
    """Returns what runs a file of a fixed number of images on any number."""

    def run_all(pixels: np.ndarray) -> dict[str, np.ndarray]:
        batches = [pixels[first : first + count] for first in range(0, len(pixels), count)]
        missing = count - len(batches[-1])
        batches[-1] = np.concatenate([batches[-1], batches[-1][-1:].repeat(missing, axis=0)])
        results = [run(batch) for batch in batches]
        return {name: np.concatenate([result[name] for result in results])[: len(pixels)] for name in results[0]}

    return run_all


def apart(network: Trained, form: Form, small: Run, pixels: np.ndarray) -> float:
    """Returns how much a file changes what tasks put out, relative to its size; of the task that it changes most."""
    expected, outputs = check.reference(network, form)[1](pixels), small(pixels)
    names = [f"{name}/{OUTPUTS}" for name in network.names]
    errors = [((outputs[name] - expected[name]) ** 2).mean() / (expected[name] ** 2).mean() for name in names]
    return float(np.sqrt(max(errors)))
