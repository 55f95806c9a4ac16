"""Exported file formats: writes a file, loads it again and returns it as a function of an image."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.export.network import (
    INPUT,
    OUTPUTS,
    TO_NCHW,
    TO_NHWC,
    Form,
    OutputFunction,
    convert_layout,
    has_any_size,
    output_function,
    report_fixed_size,
)
from mtl_jax.kernels import cpu_kernels
from mtl_jax.models import depthwise
from mtl_jax.workdir.trained import Trained, computing_in

PLATFORMS = ("cpu", "cuda")  # of the StableHLO file

PACKAGES = {  # packages that write and run a format, in addition to JAX
    "stablehlo": ("flatbuffers",),
    "onnx": ("onnx", "onnxruntime"),
    "litert": ("litert_converter", "ai_edge_litert"),
    "litert int8": ("ai_edge_quantizer",),
    "openvino": ("onnx", "onnxruntime", "openvino"),
    "coreml": ("coremltools", "stablehlo_coreml"),
}
ANY_SIZE = ("stablehlo", "onnx", "openvino")  # formats that support a dynamic image size
EXTRAS = {
    "onnx": "'.[export]'",
    "litert": "'.[litert]'",
    "litert int8": "'.[litert]'",
    "openvino": "'.[openvino]'",
    "coreml": "'.[coreml]'",
}

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


class Exported(NamedTuple):
    """An exported file and the functions that run it."""

    path: Path
    run: Run | None  # outputs of the file; None where this machine cannot run it
    check: Run | None  # the same, with the raw outputs "<task>/outputs" too
    network: Trained | None = None  # network to compare with, where it differs from the trained one
    any_batch: bool = False  # whether the batch size is dynamic
    extra_files: tuple[Path, ...] = ()  # further files, e.g. the weights

    @property
    def size(self) -> int:
        """Total size of all files in bytes."""
        roots = (self.path, *self.extra_files)
        files = [path for root in roots for path in (root.rglob("*") if root.is_dir() else [root])]
        return sum(path.stat().st_size for path in files if path.is_file())


class OnnxNetwork(NamedTuple):
    """A network converted to ONNX."""

    run_model: Any  # the model that users run
    check_model: Any  # the same, with the outputs "<task>/outputs" too
    network: Trained  # in float32, the compute type of the models
    any_batch: bool


def require_packages(name: str) -> None:
    """Checks that the packages of a format are installed.

    Raises:
        UserError: a package is missing; says how to install it.
    """
    extra = EXTRAS.get(name, ".")
    # With this package OpenVINO reports to its makers that it was imported, from a fork of this process.
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]
    for package in PACKAGES.get(name, ()):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"{name} needs {package}, which is not installed: pip install -e {extra}, or choose with --format"
            ) from error


def stablehlo(network: Trained, folder: Path, image: jax.ShapeDtypeStruct, form: Form | None = None) -> Exported:
    """Writes model.stablehlo, which `jax.export.deserialize` loads.

    Args:
        network: network to export.
        folder: output folder.
        image: input shape, channels last.
        form: decoding and layout; the default if None.

    Raises:
        UserError: a package is not installed.
    """
    require_packages("stablehlo")
    form = form or Form()
    functions = [convert_layout(output_function(network, form, with_outputs=raw), form.layout) for raw in (False, True)]
    # Depthwise convolutions as shifted sums: XLA's grouped convolutions are slow on CPUs.
    with cpu_kernels.left_out(), depthwise.traced_in("shifted"), report_fixed_size(image):
        exported, checked = (
            jax.export.export(jax.jit(function), platforms=PLATFORMS)(input_in_layout(image, form))
            for function in functions
        )
    path = folder / "model.stablehlo"
    path.write_bytes(exported.serialize())
    runs = open_stablehlo(path), _on_host(jax.jit(checked.call))
    run, check = (accept_channels_last(function, form) for function in runs)
    return Exported(path, run, check, any_batch=has_any_size(image))


def open_stablehlo(path: Path) -> Run:
    """Opens a StableHLO file as a function of its input array."""
    return _on_host(jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call))


def onnx(network: Trained, folder: Path, image: jax.ShapeDtypeStruct, form: Form | None = None) -> Exported:
    """Writes model.onnx, checked and run by onnxruntime on the CPU.

    The batch size is dynamic, unless a module of the network needs a fixed one. The file computes in float32 even where
    the network was trained in bfloat16, for which onnxruntime lacks most operators.

    Args:
        network: network to export.
        folder: output folder.
        image: input shape, channels last.
        form: decoding and layout; the default if None.

    Raises:
        UserError: a package is not installed, or the network uses an operation that is not translated.
    """
    require_packages("onnx")
    form = form or Form()
    return save_onnx(convert_to_onnx(network, image, form), folder / "model.onnx", form)


def save_onnx(converted: OnnxNetwork, path: Path, form: Form) -> Exported:
    """Writes a converted network to an ONNX file."""
    import onnx

    onnx.save(converted.run_model, path)
    run = accept_channels_last(open_session(str(path)), form)
    return Exported(path, run, open_check_model(converted, form), converted.network, converted.any_batch)


def convert_to_onnx(network: Trained, image: jax.ShapeDtypeStruct, form: Form) -> OnnxNetwork:
    """Converts a network to ONNX; arguments and errors as of `onnx`."""
    model, network, any_batch = translate(network, image, form)
    return served_onnx(model, network, form, any_batch=any_batch)


def translate(network: Trained, image: jax.ShapeDtypeStruct, form: Form) -> tuple[Any, Trained, bool]:
    """Translates a network to ONNX with raw outputs, and a pass for each task where tasks have norms of their own.

    Returns:
        The model, the network in float32, and whether the batch size is dynamic.
    """
    network = computing_in(network, "float32")
    model, any_batch = _convert_function(output_function(network, form, with_outputs=True), image, form.layout)
    return model, network, any_batch


def served_onnx(model: Any, network: Trained, form: Form, *, any_batch: bool) -> OnnxNetwork:
    """Returns an ONNX network as files have it, with the passes of tasks as one.

    Args:
        model: from `translate`, or the same in 8 bits.
        network: the network in float32.
        form: decoding and layout.
        any_batch: whether the batch size is dynamic.
    """
    from mtl_jax.export import onnx_model

    joined = _joined(model)
    return OnnxNetwork(onnx_model.remove_outputs(joined, raw_output_filter(form)), joined, network, any_batch)


def _joined(model: Any) -> Any:
    """Returns a translated model as files have it: parallel passes as one, parameters of each convolution its own."""
    from mtl_jax.export import onnx_folding, onnx_parallel, rounding

    joined = onnx_folding.with_splits(onnx_parallel.with_joined_passes(model))
    return rounding.with_own_parameters(joined)


def open_check_model(converted: OnnxNetwork, form: Form) -> Run:
    """Opens a converted network in onnxruntime, with raw outputs, as a function of images with the channels last."""
    return accept_channels_last(open_session(converted.check_model.SerializeToString()), form)


def raw_output_filter(form: Form) -> Callable[[str], bool]:
    """Returns the predicate of output names that are removed from the served file: raw outputs, if it decodes."""
    return (lambda name: False) if form.decode == "none" else (lambda name: name.endswith(f"/{OUTPUTS}"))


def input_in_layout(image: jax.ShapeDtypeStruct, form: Form) -> jax.ShapeDtypeStruct:
    """Returns the input shape in the file's layout."""
    return image if form.layout == "nhwc" else jax.ShapeDtypeStruct([image.shape[i] for i in TO_NCHW], image.dtype)


def write_onnx(function: OutputFunction, path: Path, image: jax.ShapeDtypeStruct, *, layout: str = "nhwc") -> bool:
    """Writes a function as an ONNX file, unchecked; returns whether its batch size is dynamic."""
    require_packages("onnx")
    import onnx

    model, any_batch = _convert_function(function, image, layout)
    onnx.save(_joined(model), path)
    return any_batch


def _convert_function(function: OutputFunction, image: jax.ShapeDtypeStruct, layout: str) -> tuple[Any, bool]:
    from mtl_jax.export import onnx_model

    with cpu_kernels.left_out(), depthwise.traced_in("grouped"), report_fixed_size(image):
        model, any_batch = onnx_model.convert_any_batch(function, image, input_name=INPUT, layout=layout)
    return model, any_batch


def open_session(source: Any) -> Run:
    """Opens an ONNX file, given by path or bytes, as a function of its input array, of any number of images."""
    loaded = inference_session(source)
    names, image = [output.name for output in loaded.get_outputs()], loaded.get_inputs()[0]

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, loaded.run(names, {image.name: pixels}), strict=True))

    (count,) = image.shape[:1] or ("",)  # a name where it is dynamic
    return run_in_batches(run, count) if isinstance(count, int) else run


def inference_session(source: Any) -> Any:
    """Returns onnxruntime's session of an ONNX file, given by path or bytes."""
    import onnxruntime

    options: Any = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: a file in the making may hold constants that nothing reads any more
    # Spinning threads would occupy the cores between calls and distort timings that alternate with other programs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def node_count(path: Path) -> int:
    """Returns the number of nodes in an ONNX file."""
    import onnx

    return len(onnx.load(str(path)).graph.node)


def accept_channels_last(run: Run, form: Form) -> Run:
    """Wraps a file's function so that its input and maps have the channels last, whatever its layout."""
    if form.layout == "nhwc":
        return run

    def run_transposed(pixels: np.ndarray) -> dict[str, np.ndarray]:
        outputs = run(np.ascontiguousarray(pixels.transpose(TO_NCHW)))
        return {name: value.transpose(TO_NHWC) if value.ndim == 4 else value for name, value in outputs.items()}

    return run_transposed


def run_in_batches(run: Run, count: int) -> Run:
    """Wraps the function of a file with a fixed batch size so that it accepts any number of images."""

    def run_any(pixels: np.ndarray) -> dict[str, np.ndarray]:
        if len(pixels) == count:
            return run(pixels)
        batches = [pixels[first : first + count] for first in range(0, len(pixels), count)]
        missing = count - len(batches[-1])
        batches[-1] = np.concatenate([batches[-1], batches[-1][-1:].repeat(missing, axis=0)])
        results = [run(batch) for batch in batches]
        return {name: np.concatenate([result[name] for result in results])[: len(pixels)] for name in results[0]}

    return run_any


def _on_host(function: Callable[..., Any]) -> Run:
    return lambda pixels: jax.device_get(function(pixels))


def _import_format(name: str) -> Callable[..., Exported]:
    """Returns the export function of a format, whose module is imported on first use."""

    def export(*arguments: Any) -> Exported:
        return getattr(importlib.import_module(f"mtl_jax.export.{name}"), name)(*arguments)

    return export


FORMATS: dict[str, Callable[..., Exported]] = {
    "stablehlo": stablehlo,
    "onnx": onnx,
    **{name: _import_format(name) for name in ("litert", "openvino", "coreml")},
}
