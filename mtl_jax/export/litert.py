"""LiteRT's file (.tflite): the StableHLO of the network through LiteRT's own converter, run by its interpreter."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.export import traced
from mtl_jax.export.formats import Exported, Run, require_packages
from mtl_jax.export.network import INPUT, Form, answers, in_layout
from mtl_jax.workdir.trained import Trained, computing_in

SIGNATURE = "serving_default"


def litert(network: Trained, folder: Path, image: jax.ShapeDtypeStruct, form: Form | None = None) -> Exported:
    """Writes model.tflite, for `image`'s number of images, in float32.

    Args:
        network: to export.
        folder: gets the file.
        image: what the function takes, the channels last.
        form: what the file takes and gives; the default if None.

    Raises:
        UserError: a package is not installed, or the converter refuses the network.
    """
    require_packages("litert")
    form, network = form or Form(), computing_in(network, "float32")
    if form.layout != "nhwc":
        raise UserError("litert: expected --layout nhwc, found nchw; LiteRT computes with the channels last")
    path = folder / "model.tflite"
    path.write_bytes(converted(network, image, form, with_outputs=False))
    run = interpreter(path.read_bytes())
    check = run if form.decode == "none" else interpreter(converted(network, image, form, with_outputs=True))
    return Exported(path, run, check, network)


def converted(network: Trained, image: jax.ShapeDtypeStruct, form: Form, *, with_outputs: bool) -> bytes:
    """Returns a network as a file of LiteRT; with_outputs: what decoding starts from is among its outputs."""
    library = "litert_converter.mlir"
    names_of = ("ir", "passmanager", "_mlir_libs.converter_api_ext")
    ir, passmanager, converter = (importlib.import_module(f"{library}.{name}") for name in names_of)
    function = in_layout(answers(network, form, with_outputs=with_outputs), form.layout)
    exported, names = traced.exported(function, image)
    context = ir.Context()
    converter.prepare_mlir_context(context)
    try:
        with context:
            module = ir.Module.parse(exported.mlir_module())
            converter.set_signature(module.operation, SIGNATURE, [INPUT], list(names))
            passes = passmanager.PassManager()
            converter.run_convert_to_tfl_passes(module, passes, converter.ConvertToTFLConfig())
            passes.run(module.operation)
            return converter.export_flatbuffer_to_bytes(module.operation)
    except Exception as error:  # of several kinds, whose text runs over many lines
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"litert: the converter refuses what the file decodes to ({reason}); export with --decode none or boxes"
        ) from error


def interpreter(model: bytes) -> Run:
    """Opens a file of LiteRT as a function of the array that it takes."""
    opened: Any = importlib.import_module("ai_edge_litert.interpreter").Interpreter(model_content=model)
    runner = opened.get_signature_runner(SIGNATURE)
    return lambda pixels: {name: np.array(value) for name, value in runner(**{INPUT: pixels}).items()}
