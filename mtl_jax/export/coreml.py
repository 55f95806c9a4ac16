"""Core ML's package (.mlpackage), of the network's StableHLO; a Mac or an iPhone is needed to run it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from mtl_jax.errors import UserError
from mtl_jax.export import traced
from mtl_jax.export.formats import PACKAGES, Exported, given, require_packages
from mtl_jax.export.network import INPUT, Form, answers, in_layout
from mtl_jax.workdir.trained import Trained, computing_in


def coreml(network: Trained, folder: Path, image: jax.ShapeDtypeStruct, form: Form | None = None) -> Exported:
    """Writes model.mlpackage, for iOS 18 and macOS 15 or newer, unchecked.

    Args:
        network: to export.
        folder: gets the package, which is a folder.
        image: what the function takes, the channels last.
        form: what the file takes and gives; the default if None.

    Raises:
        UserError: a package is not installed, or the converter refuses the network.
    """
    require_packages("coreml")
    # As the converter's own examples do: it takes a parsed module.
    mlir, library = (importlib.import_module(f"jax._src.{name}") for name in ("interpreters.mlir", "lib.mlir"))
    coremltools, stablehlo_coreml = (importlib.import_module(name) for name in PACKAGES["coreml"])
    form, network = form or Form(), computing_in(network, "float32")
    exported, names = traced.exported(in_layout(answers(network, form), form.layout), given(image, form))
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
    except Exception as error:  # of several kinds, whose text runs over many lines
        reason = " ".join(str(error).split())[:200]
        instead = "export with --decode none" if form.decode != "none" else "export it as onnx or litert"
        raise UserError(f"coreml: the converter refuses the network ({reason}); {instead}") from error
    path = folder / "model.mlpackage"
    _named(package, names).save(str(path))
    return Exported(path, None, None, network)


def _named(package: Any, names: Sequence[str]) -> Any:
    """Calls the package's input and outputs as every other file does; Core ML's names have no slash."""
    coremltools = importlib.import_module("coremltools")
    spec = package.get_spec()
    wanted = [INPUT, *(name.replace("/", "_") for name in names)]
    for feature, name in zip((*spec.description.input, *spec.description.output), wanted, strict=True):
        coremltools.utils.rename_feature(spec, feature.name, name)
    return coremltools.models.MLModel(spec, weights_dir=package.weights_dir, skip_model_load=True)
