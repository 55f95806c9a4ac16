"""The files: each is written, read again, and returned as a function of an image."""

from __future__ import annotations

import importlib
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
    Answers,
    Form,
    answers,
    has_any_size,
    in_layout,
    size_checked,
)
from mtl_jax.kernels import cpu_kernels
from mtl_jax.models import depthwise
from mtl_jax.workdir.trained import Trained, computing_in

PLATFORMS = ("cpu", "cuda")  # of the StableHLO file

PACKAGES = {  # besides JAX, the packages that write and run a format
    "stablehlo": ("flatbuffers",),
    "onnx": ("onnx", "onnxruntime"),
    "litert": ("litert_converter", "ai_edge_litert"),
    "litert int8": ("ai_edge_quantizer",),
    "openvino": ("onnx", "onnxruntime", "openvino"),
    "coreml": ("coremltools", "stablehlo_coreml"),
}
ANY_SIZE = ("stablehlo", "onnx", "openvino")  # the formats whose files may take images of any size
EXTRAS = {
    "onnx": "'.[export]'",
    "litert": "'.[litert]'",
    "litert int8": "'.[litert]'",
    "openvino": "'.[openvino]'",
    "coreml": "'.[coreml]'",
}

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


class Exported(NamedTuple):
    """A file and what it computes."""

    path: Path
    run: Run | None  # as a user of the file does; None where this machine cannot run it
    check: Run | None  # the same, and "<task>/outputs"
    network: Trained | None = None  # what it is compared with, where that is not the exported one as it was trained
    any_batch: bool = False  # whether it takes other numbers of images than the one it was checked with
    beside: tuple[Path, ...] = ()  # other files that belong to it

    @property
    def size(self) -> int:
        """Bytes of all that belongs to it."""
        places = (self.path, *self.beside)
        files = [path for place in places for path in (place.rglob("*") if place.is_dir() else [place])]
        return sum(path.stat().st_size for path in files if path.is_file())


class Translated(NamedTuple):
    """A network as ONNX."""

    served: Any  # the model that users get
    whole: Any  # the same, and "<task>/outputs"
    network: Trained  # in the float32 that it is computed in
    any_batch: bool


def require_packages(name: str) -> None:
    """Checks that what a format needs is installed.

    Raises:
        UserError: names the package and how to install it.
    """
    extra = EXTRAS.get(name, ".")
    for package in PACKAGES.get(name, ()):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"{name} needs {package}, which is not installed: pip install -e {extra}, or choose with --format"
            ) from error


def stablehlo(network: Trained, folder: Path, image: jax.ShapeDtypeStruct, form: Form | None = None) -> Exported:
    """Writes model.stablehlo, which `jax.export.deserialize` reads.

    Args:
        network: to export.
        folder: gets the file.
        image: what the function takes, the channels last.
        form: what the file takes and gives; the default if None.

    Raises:
        UserError: a package is not installed.
    """
    require_packages("stablehlo")
    form = form or Form()
    # Depthwise sums tap by tap, because XLA's grouped convolutions are slow on CPUs.
    with cpu_kernels.left_out(), depthwise.traced_in("shifted"), size_checked(image):
        served, checked = (
            jax.export.export(jax.jit(function), platforms=PLATFORMS)(given(image, form))
            for function in (
                in_layout(answers(network, form, with_outputs=outputs), form.layout) for outputs in (False, True)
            )
        )
    path = folder / "model.stablehlo"
    path.write_bytes(served.serialize())
    served_again = jax.export.deserialize(bytearray(path.read_bytes()))
    run, check = (with_channels_last(_on_host(jax.jit(function.call)), form) for function in (served_again, checked))
    return Exported(path, run, check, any_batch=has_any_size(image))


def onnx(network: Trained, folder: Path, image: jax.ShapeDtypeStruct, form: Form | None = None) -> Exported:
    """Writes model.onnx, checked and run by onnxruntime on the CPU.

    It takes any number of images, unless a part of the network needs to know it. It computes in float32 also where the
    network was trained in bfloat16, of which onnxruntime lacks most operations.

    Args:
        network: to export.
        folder: gets the file.
        image: what the function takes, the channels last.
        form: what the file takes and gives; the default if None.

    Raises:
        UserError: the packages are not installed, or the network computes what is not translated.
    """
    require_packages("onnx")
    import onnx

    form = form or Form()
    translated = as_onnx(network, image, form)
    path = folder / "model.onnx"
    onnx.save(translated.served, path)
    sources = (str(path), translated.whole.SerializeToString())
    run, check = (with_channels_last(session(source), form) for source in sources)
    return Exported(path, run, check, translated.network, translated.any_batch)


def as_onnx(network: Trained, image: jax.ShapeDtypeStruct, form: Form) -> Translated:
    """Returns a network as ONNX; arguments and errors as of `onnx`."""
    from mtl_jax.export import onnx_model

    network = computing_in(network, "float32")
    model, any_batch = _as_onnx(answers(network, form, with_outputs=True), image, form.layout)
    return Translated(onnx_model.remove_outputs(model, unserved(form)), model, network, any_batch)


def unserved(form: Form) -> Callable[[str], bool]:
    """Returns which outputs of the whole network a user does not get."""
    return (lambda name: False) if form.decode == "none" else (lambda name: name.endswith(f"/{OUTPUTS}"))


def given(image: jax.ShapeDtypeStruct, form: Form) -> jax.ShapeDtypeStruct:
    """Returns what a file takes, in its layout."""
    return image if form.layout == "nhwc" else jax.ShapeDtypeStruct([image.shape[i] for i in TO_NCHW], image.dtype)


def write_onnx(function: Answers, path: Path, image: jax.ShapeDtypeStruct, *, layout: str = "nhwc") -> bool:
    """Writes what a network computes as an ONNX file, unchecked; returns whether it takes any number of images."""
    require_packages("onnx")
    import onnx

    model, any_batch = _as_onnx(function, image, layout)
    onnx.save(model, path)
    return any_batch


def _as_onnx(function: Answers, image: jax.ShapeDtypeStruct, layout: str) -> tuple[Any, bool]:
    from mtl_jax.export import onnx_model

    with cpu_kernels.left_out(), depthwise.traced_in("grouped"), size_checked(image):
        return onnx_model.convert_any_batch(function, image, input_name=INPUT, layout=layout)


def session(source: Any) -> Run:
    """Opens an ONNX file, or its bytes, as a function of the array that it takes."""
    import onnxruntime

    options: Any = onnxruntime.SessionOptions()
    # Between calls its threads would wait in loops, and take the cores from whatever is timed in turns with it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    opened: Any = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names, input_name = [output.name for output in opened.get_outputs()], opened.get_inputs()[0].name
    return lambda pixels: dict(zip(names, opened.run(names, {input_name: pixels}), strict=True))


def node_count(path: Path) -> int:
    """Returns the number of operators in an ONNX file."""
    import onnx

    return len(onnx.load(str(path)).graph.node)


def with_channels_last(run: Run, form: Form) -> Run:
    """Returns what runs a file on what the network takes, whatever the file's layout."""
    if form.layout == "nhwc":
        return run

    def turned(pixels: np.ndarray) -> dict[str, np.ndarray]:
        outputs = run(np.ascontiguousarray(pixels.transpose(TO_NCHW)))
        return {name: value.transpose(TO_NHWC) if value.ndim == 4 else value for name, value in outputs.items()}

    return turned


def _on_host(function: Callable[..., Any]) -> Run:
    return lambda pixels: jax.device_get(function(pixels))


def _elsewhere(name: str) -> Callable[..., Exported]:
    """Returns the maker of a format that has a file of its own, which is imported on first use."""

    def make(*arguments: Any) -> Exported:
        return getattr(importlib.import_module(f"mtl_jax.export.{name}"), name)(*arguments)

    return make


FORMATS: dict[str, Callable[..., Exported]] = {
    "stablehlo": stablehlo,
    "onnx": onnx,
    **{name: _elsewhere(name) for name in ("litert", "openvino", "coreml")},
}
