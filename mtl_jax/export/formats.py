"""The files: each is written, read again, and returned as a function of an image."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.export.network import INPUT, OUTPUTS, answers
from mtl_jax.kernels import cpu_kernels
from mtl_jax.models import depthwise
from mtl_jax.workdir.trained import Trained, computing_in

PLATFORMS = ("cpu", "cuda")  # of the StableHLO file

PACKAGES = {"stablehlo": ("flatbuffers",), "onnx": ("onnx", "onnxruntime")}  # beside JAX, what writes and runs a format

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


class Exported(NamedTuple):
    """A file and what it computes."""

    path: Path
    run: Run  # as a user of the file does
    check: Run  # the same, and "<task>/outputs"
    network: Trained | None = None  # what it is compared with, where that is not the exported one as it was trained


def require_packages(name: str) -> None:
    """Checks that what a format needs is installed.

    Raises:
        UserError: names the package and how to install it.
    """
    extra = "'.[export]'" if name == "onnx" else "."
    for package in PACKAGES.get(name, ()):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"{name} needs {package}, which is not installed: pip install -e {extra}, or choose with --format"
            ) from error


def stablehlo(network: Trained, folder: Path, image: jax.ShapeDtypeStruct) -> Exported:
    """Writes model.stablehlo, which `jax.export.deserialize` reads.

    Args:
        network: to export.
        folder: gets the file.
        image: what the function takes.

    Raises:
        UserError: a package is not installed.
    """
    require_packages("stablehlo")
    # Depthwise sums tap by tap, because XLA's grouped convolutions are slow on CPUs.
    with cpu_kernels.left_out(), depthwise.traced_in("shifted"):
        served, checked = (
            jax.export.export(jax.jit(answers(network, with_outputs=more)), platforms=PLATFORMS)(image)
            for more in (False, True)
        )
    path = folder / "model.stablehlo"
    path.write_bytes(served.serialize())
    read = jax.export.deserialize(bytearray(path.read_bytes()))
    return Exported(path, _on_host(jax.jit(read.call)), _on_host(jax.jit(checked.call)))


def onnx(network: Trained, folder: Path, image: jax.ShapeDtypeStruct) -> Exported:
    """Writes model.onnx, checked and run by onnxruntime on the CPU.

    It computes in float32 also where the network was trained in bfloat16, of which onnxruntime lacks most operations.

    Args:
        network: to export.
        folder: gets the file.
        image: what the function takes.

    Raises:
        UserError: the packages are not installed, or the network computes what is not translated.
    """
    require_packages("onnx")
    import onnx
    import onnxruntime

    from mtl_jax.export import onnx_model

    network = computing_in(network, "float32")
    with cpu_kernels.left_out(), depthwise.traced_in("grouped"):
        model = onnx_model.convert(answers(network, with_outputs=True), image, input_name=INPUT)
    checked: Any = model.SerializeToString()
    path = folder / "model.onnx"
    onnx.save(onnx_model.without_outputs(model, lambda name: name.endswith(f"/{OUTPUTS}")), path)

    def session(source: Any) -> Run:
        opened: Any = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
        names = [output.name for output in opened.get_outputs()]
        return lambda pixels: dict(zip(names, opened.run(names, {INPUT: pixels}), strict=True))

    return Exported(path, session(str(path)), session(checked), network)


def _on_host(function: Callable[..., Any]) -> Run:
    return lambda pixels: jax.device_get(function(pixels))


FORMATS: dict[str, Callable[[Trained, Path, jax.ShapeDtypeStruct], Exported]] = {"stablehlo": stablehlo, "onnx": onnx}
