"""OpenVINO's two files (.xml and .bin), made of the ONNX file and run on the CPU."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from mtl_jax.export import formats
from mtl_jax.export.formats import Exported, Run, require_packages
from mtl_jax.export.network import INPUT, Form, has_any_size
from mtl_jax.workdir.trained import Trained


def openvino(network: Trained, folder: Path, image: jax.ShapeDtypeStruct, form: Form | None = None) -> Exported:
    """Writes model.xml and model.bin, for `image`'s number of images, in float32.

    OpenVINO reads the ONNX files too; these are parsed already, and their shapes are known, but for images of any size.

    Args:
        network: to export.
        folder: gets the files.
        image: what the function takes, the channels last.
        form: what the file takes and gives; the default if None.

    Raises:
        UserError: a package is not installed, or the network computes what is not translated.
    """
    require_packages("openvino")
    form = form or Form()
    translated, path = formats.as_onnx(network, image, form), folder / "model.xml"
    _library().save_model(_read(translated.served, image, form), path, compress_to_fp16=False)
    sources = (str(path), _names(translated.served)), (_read(translated.whole, image, form), _names(translated.whole))
    run, check = (formats.with_channels_last(_compiled(*source), form) for source in sources)
    beside = (path.with_suffix(".bin"),)
    return Exported(path, run, check, translated.network, any_batch=has_any_size(image), beside=beside)


def _library() -> Any:
    return importlib.import_module("openvino")


def _read(model: Any, image: jax.ShapeDtypeStruct, form: Form) -> Any:
    parsed = _library().Core().read_model(model.SerializeToString())
    if not has_any_size(image):
        parsed.reshape({INPUT: list(formats.given(image, form).shape)})
    return parsed


def _compiled(model: Any, names: Sequence[str]) -> Run:
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = _library().Core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()

    def run(pixels: Any) -> dict[str, Any]:
        results = request.infer({INPUT: pixels})
        return {name: results[compiled.output(name)] for name in names}  # an output may have several names

    return run


def _names(model: Any) -> list[str]:
    return [output.name for output in model.graph.output]
