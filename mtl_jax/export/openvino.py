"""OpenVINO export (.xml and .bin), converted from the ONNX model and run on the CPU."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from mtl_jax.export import formats
from mtl_jax.export.formats import Exported, OnnxNetwork, Run, require_packages
from mtl_jax.export.network import INPUT, Form, has_any_size
from mtl_jax.workdir.trained import Trained


def openvino(network: Trained, folder: Path, image: jax.ShapeDtypeStruct, form: Form | None = None) -> Exported:
    """Writes model.xml and model.bin in float32, for the batch size of `image`.

    OpenVINO can load the ONNX file too; these files are parsed already and have static shapes, unless the image size is
    dynamic.

    Args:
        network: network to export.
        folder: output folder.
        image: input shape, channels last.
        form: decoding and layout; the default if None.

    Raises:
        UserError: a package is not installed, or the network uses an operation that is not translated.
    """
    require_packages("openvino")
    form = form or Form()
    return save_ir(formats.convert_to_onnx(network, image, form), folder / "model.xml", image, form)


def save_ir(converted: OnnxNetwork, path: Path, image: jax.ShapeDtypeStruct, form: Form) -> Exported:
    """Writes a converted network to an .xml file, and its weights to a .bin file of the same name.

    Args:
        converted: network, in 8 bits or not.
        path: of the .xml file.
        image: input shape, channels last.
        form: decoding and layout.
    """
    import_openvino().save_model(_parse(converted.run_model, image, form), path, compress_to_fp16=False)
    sources = (
        (str(path), _output_names(converted.run_model)),
        (_parse(converted.check_model, image, form), _output_names(converted.check_model)),
    )
    run, check = (formats.accept_channels_last(_compile(*source), form) for source in sources)
    any_batch, extra_files = has_any_size(image), (path.with_suffix(".bin"),)
    if not any_batch:
        check = formats.run_in_batches(check, image.shape[0])
    return Exported(path, run, check, converted.network, any_batch=any_batch, extra_files=extra_files)


def open_file(path: Path, names: Sequence[str], shape: Sequence[int], precision: str = "f32") -> Run:
    """Opens an ONNX or .xml file as a function of its input array.

    Args:
        path: of the file.
        names: of its outputs.
        shape: of its input.
        precision: `INFERENCE_PRECISION_HINT`.
    """
    model = import_openvino().Core().read_model(str(path))
    model.reshape(list(shape))
    return _compile(model, names, precision)


def import_openvino() -> Any:
    """Imports OpenVINO, which only its extra installs.

    Raises:
        UserError: it is not installed.
    """
    require_packages("openvino")
    return importlib.import_module("openvino")


def _parse(model: Any, image: jax.ShapeDtypeStruct, form: Form) -> Any:
    parsed = import_openvino().Core().read_model(model.SerializeToString())
    if not has_any_size(image):
        parsed.reshape({INPUT: list(formats.input_in_layout(image, form).shape)})
    return parsed


def compiled_model(model: Any, precision: str = "f32") -> Any:
    """Compiles a model, or the file at a path, for single calls on the CPU; precision: `INFERENCE_PRECISION_HINT`."""
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    return import_openvino().Core().compile_model(model, "CPU", settings)


def _compile(model: Any, names: Sequence[str], precision: str = "f32") -> Run:
    compiled = compiled_model(model, precision)
    request = compiled.create_infer_request()

    def run(pixels: Any) -> dict[str, Any]:
        results = request.infer({INPUT: pixels})
        return {name: results[compiled.output(name)] for name in names}  # an output may have several names

    return run


def _output_names(model: Any) -> list[str]:
    return [output.name for output in model.graph.output]
