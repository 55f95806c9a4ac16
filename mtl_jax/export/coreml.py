"""Core ML export (.mlpackage), converted from StableHLO; running it needs a Mac or an iPhone."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from mtl_jax.errors import UserError
from mtl_jax.export import traced
from mtl_jax.export.formats import PACKAGES, Exported, input_in_layout, require_packages
from mtl_jax.export.network import INPUT, Form, convert_layout, output_function
from mtl_jax.workdir.trained import Trained, computing_in


def coreml(network: Trained, folder: Path, image: jax.ShapeDtypeStruct, form: Form | None = None) -> Exported:
    """Writes model.mlpackage for iOS 18, macOS 15 or newer; the file is not checked.

    Args:
        network: network to export.
        folder: output folder; the package is a folder in it.
        image: input shape, channels last.
        form: decoding and layout; the default if None.

    Raises:
        UserError: a package is not installed, or the converter rejects the network.
    """
    require_packages("coreml")
    # The converter takes a parsed module, as in its own examples.
    mlir, library = (importlib.import_module(f"jax._src.{name}") for name in ("interpreters.mlir", "lib.mlir"))
    coremltools, stablehlo_coreml = (importlib.import_module(name) for name in PACKAGES["coreml"])
    form, network = form or Form(), computing_in(network, "float32")
    exported, names = traced.export_function(
        convert_layout(output_function(network, form), form.layout), input_in_layout(image, form)
    )
    target = coremltools.target.iOS18
    try:
        with mlir.make_ir_context():
            program = stablehlo_coreml.convert(library.ir.Module.parse(exported.mlir_module()), target)
        package = coremltools.convert(
            program,
            source="milinternal",
            minimum_deployment_target=target,
            pass_pipeline=stablehlo_coreml.build_pass_pipeline(),
            compute_precision=coremltools.precision.FLOAT32,
            skip_model_load=True,
        )
    except Exception as error:  # of several types, with messages of many lines
        reason = " ".join(str(error).split())[:200]
        instead = "export with --decode none" if form.decode != "none" else "export it as onnx or litert"
        raise UserError(f"coreml: the converter refuses the network ({reason}); {instead}") from error
    path = folder / "model.mlpackage"
    _rename_features(package, names).save(str(path))
    return Exported(path, None, None, network)


def _rename_features(package: Any, names: Sequence[str]) -> Any:
    """Renames the package's input and outputs as in other files, with "_" for the slash that Core ML lacks."""
    coremltools = importlib.import_module("coremltools")
    spec = package.get_spec()
    names_in_file = [INPUT, *(name.replace("/", "_") for name in names)]
    for feature, name in zip((*spec.description.input, *spec.description.output), names_in_file, strict=True):
        coremltools.utils.rename_feature(spec, feature.name, name)
    return coremltools.models.MLModel(spec, weights_dir=package.weights_dir, skip_model_load=True)
