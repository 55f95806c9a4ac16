"""The files: each is written, read again, and returned as a function of an image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.export.network import INPUT, OUTPUTS, answers
from mtl_jax.models import cpu_kernels, depthwise
from mtl_jax.trained import Trained

PLATFORMS = ("cpu", "cuda")  # of the StableHLO file

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


class Exported(NamedTuple):
    """A file and what it computes."""

    path: Path
    run: Run  # as a user of the file does
    check: Run  # the same, and "<task>/outputs"


def stablehlo(network: Trained, folder: Path, image: jax.ShapeDtypeStruct) -> Exported:
    """Writes model.stablehlo, which `jax.export.deserialize` reads.

    Args:
        network: to export.
        folder: gets the file.
        image: what the function takes.
    """
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

    Args:
        network: to export.
        folder: gets the file.
        image: what the function takes.

    Raises:
        UserError: the packages are not installed, or the network computes what is not translated.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(f"onnx needs {error.name}, which is not installed: pip install -e '.[export]'") from error
    from mtl_jax.export import onnx_model

    with cpu_kernels.left_out(), depthwise.traced_in("grouped"):
        model = onnx_model.convert(answers(network, with_outputs=True), image, input_name=INPUT)
    checked: Any = model.SerializeToString()
    path = folder / "model.onnx"
    onnx.save(onnx_model.without_outputs(model, lambda name: name.endswith(f"/{OUTPUTS}")), path)

    def session(source: Any) -> Run:
        opened: Any = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
        names = [output.name for output in opened.get_outputs()]
        return lambda pixels: dict(zip(names, opened.run(names, {INPUT: pixels}), strict=True))

    return Exported(path, session(str(path)), session(checked))


def _on_host(function: Callable[..., Any]) -> Run:
    return lambda pixels: jax.device_get(function(pixels))


FORMATS: dict[str, Callable[[Trained, Path, jax.ShapeDtypeStruct], Exported]] = {"stablehlo": stablehlo, "onnx": onnx}
