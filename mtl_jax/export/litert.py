"""LiteRT export (.tflite): StableHLO through the LiteRT converter, run by the LiteRT interpreter."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.export import traced
from mtl_jax.export.formats import Exported, Run, require_packages
from mtl_jax.export.network import INPUT, Form, convert_layout, output_function
from mtl_jax.workdir.trained import Trained, computing_in

SIGNATURE = "serving_default"


def litert(network: Trained, folder: Path, image: jax.ShapeDtypeStruct, form: Form | None = None) -> Exported:
    """Writes model.tflite in float32, for the batch size of `image`.

    Args:
        network: network to export.
        folder: output folder.
        image: input shape, channels last.
        form: decoding and layout; the default if None.

    Raises:
        UserError: a package is not installed, or the converter rejects the network.
    """
    require_packages("litert")
    form, network = form or Form(), computing_in(network, "float32")
    if form.layout != "nhwc":
        raise UserError("litert: expected --layout nhwc, found nchw; LiteRT computes with the channels last")
    path = folder / "model.tflite"
    path.write_bytes(convert(network, image, form, with_outputs=False))
    run = interpreter(path.read_bytes())
    check = run if form.decode == "none" else interpreter(convert(network, image, form, with_outputs=True))
    return Exported(path, run, check, network)


def convert(network: Trained, image: jax.ShapeDtypeStruct, form: Form, *, with_outputs: bool) -> bytes:
    """Converts a network to the bytes of a LiteRT file; with_outputs: raw outputs are among its outputs."""
    function = convert_layout(output_function(network, form, with_outputs=with_outputs), form.layout)
    try:
        return convert_function(function, image)
    except Exception as error:  # of several types, with messages of many lines
        reason = " ".join(str(error).split())[:200]
        instead = "export with --decode none or boxes" if form.decode == "all" else "export it as onnx"
        raise UserError(f"litert: the converter refuses the network ({reason}); {instead}") from error


def convert_function(function: Callable[..., Mapping[str, Any]], image: jax.ShapeDtypeStruct) -> bytes:
    """Converts a function of images to the bytes of a LiteRT file.

    Args:
        function: returns name -> array.
        image: shape of its input.
    """
    library = "litert_converter.mlir"
    modules = ("ir", "passmanager", "_mlir_libs.converter_api_ext")
    ir, passmanager, converter = (importlib.import_module(f"{library}.{name}") for name in modules)
    exported, names = traced.export_function(function, image, {"_resize": resize})
    context = ir.Context()
    converter.prepare_mlir_context(context)
    with context:
        module = ir.Module.parse(exported.mlir_module())
        converter.set_signature(module.operation, SIGNATURE, [INPUT], list(names))
        passes = passmanager.PassManager()
        converter.run_convert_to_tfl_passes(module, passes, converter.ConvertToTFLConfig())
        passes.run(module.operation)
        return converter.export_flatbuffer_to_bytes(module.operation)


def resize(shape: Sequence[int], x: Any) -> Any:
    """Upsamples maps bilinearly by the composite that the converter turns into one operator; None for other changes.

    Args:
        shape: of the result, [batch, new height, new width, channels].
        x: [batch, height, width, channels].
    """
    if len(shape) != 4 or x.shape[::3] != shape[::3] or any(new < old for new, old in zip(shape, x.shape, strict=True)):
        return None
    size = np.array(shape[1:3], np.int64)

    def decomposition(x: Any, **attributes: Any) -> Any:
        del attributes
        return jax.image.resize(x, (*x.shape[:2], *shape[1:3]), "linear")

    upsample = jax.lax.composite(decomposition, "odml.upsample_bilinear2d")
    return upsample(x.transpose(0, 3, 1, 2), size=size, align_corners=False, is_nchw_op=True).transpose(0, 2, 3, 1)


def interpreter(model: bytes) -> Run:
    """Opens a LiteRT file as a function of its input array."""
    runner = open_interpreter(model).get_signature_runner(SIGNATURE)
    return lambda pixels: {name: np.array(value) for name, value in runner(**{INPUT: pixels}).items()}


def open_interpreter(model: bytes) -> Any:
    """Returns LiteRT's interpreter of a file, which computes with all cores."""
    library: Any = importlib.import_module("ai_edge_litert.interpreter")
    return library.Interpreter(model_content=model, num_threads=os.cpu_count())  # of its own accord it takes one
