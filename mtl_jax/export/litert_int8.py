"""LiteRT export in 8 bits: 8-bit kernels, and dynamic quantisation of the inputs of full convolutions."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import jax

from mtl_jax.errors import UserError
from mtl_jax.export.formats import Exported, require_packages, run_in_batches
from mtl_jax.export.litert import convert, interpreter
from mtl_jax.export.network import Form
from mtl_jax.workdir.trained import Trained, computing_in

MIN_KERNEL_SIZE = 2304  # weights; smaller kernels, mainly of the first layers, are the most sensitive and stay in fp32
RECIPES = {  # by operator; 8-bit depthwise convolutions are slow in LiteRT and are computed in fp32
    "CONV_2D": "dynamic_wi8_afp32",
    "FULLY_CONNECTED": "dynamic_wi8_afp32",
    "DEPTHWISE_CONV_2D": "weight_only_wi8_afp32",
}


def litert_int8(network: Trained, folder: Path, image: jax.ShapeDtypeStruct, form: Form) -> Exported:
    """Writes model.int8.tflite for the batch size of `image`; it needs no calibration.

    Args:
        network: network to export.
        folder: output folder.
        image: input shape, channels last.
        form: decoding and layout.

    Raises:
        UserError: a package is not installed, or the converter rejects the network.
    """
    require_packages("litert")
    require_packages("litert int8")
    if form.layout != "nhwc":
        raise UserError("litert: expected --layout nhwc, found nchw; LiteRT computes with the channels last")
    network = computing_in(network, "float32")
    path = folder / "model.int8.tflite"
    path.write_bytes(quantise(convert(network, image, form, with_outputs=False)))
    checked = quantise(convert(network, image, form, with_outputs=True))
    return Exported(path, interpreter(path.read_bytes()), run_in_batches(interpreter(checked), image.shape[0]), network)


def quantise(model: bytes) -> bytes:
    """Quantises a LiteRT file to 8 bits, with a scale for each output channel of a kernel."""
    library = importlib.import_module("ai_edge_quantizer.recipe")
    rules = []
    for operator, recipe in RECIPES.items():
        (rule,) = getattr(library, recipe)()
        rules.append(
            rule | {"operation": operator, "op_config": rule["op_config"] | {"min_weight_elements": MIN_KERNEL_SIZE}}
        )
    quantizer: Any = importlib.import_module("ai_edge_quantizer.quantizer")
    return bytes(quantizer.Quantizer(model, rules).quantize().quantized_model)
