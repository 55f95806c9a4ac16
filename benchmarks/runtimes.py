"""Time of exported files in every installed runtime that opens them: photographs, in turns.

python -m benchmarks.runtimes exported/*.onnx --images data/mini-coco-det/val --batch_sizes 1 8
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from mtl_jax import predict
from mtl_jax.data import pipeline
from mtl_jax.data.images import decode_image
from mtl_jax.evaluation import evaluate
from mtl_jax.export import check, formats, litert, openvino
from mtl_jax.export.network import TO_NCHW
from mtl_jax.workdir import trained
from mtl_jax.workdir.trained import Trained

PRECISIONS = ("f32", "bf16")  # OpenVINO's INFERENCE_PRECISION_HINT
ORT, OPENVINO, JAX, LITERT = "onnxruntime", "OpenVINO", "JAX", "LiteRT"
NETWORK = "the network"
PACKAGES = {ORT: "onnxruntime", OPENVINO: "openvino", JAX: "flatbuffers", LITERT: "ai_edge_litert"}
FIXED, DYNAMIC = ("fixed",), ("dynamic",)
RUNTIMES = {  # by the suffix of a file, with the batch sizes that they can have
    ".onnx": {ORT: DYNAMIC, OPENVINO: DYNAMIC + FIXED},
    ".xml": {OPENVINO: FIXED},
    ".stablehlo": {JAX: FIXED},
    ".tflite": {LITERT: FIXED},
}


class Case(NamedTuple):
    """A file in a runtime."""

    file: Path
    runtime: str
    precision: str = "f32"
    batch: str = "dynamic"  # or fixed

    @property
    def is_fixed(self) -> bool:
        """Whether the runtime gets the number of images before it compiles the file."""
        return self.batch == "fixed"

    @property
    def label(self) -> str:
        """What no other case is called."""
        return " ".join(map(str, self))


def cases(files: Sequence[Path], precisions: Sequence[str]) -> list[Case]:
    """Lists the files in each installed runtime, in OpenVINO with a dynamic and with a fixed batch size."""
    listed = [
        Case(file, runtime, precision, batch)
        for file in files
        for runtime, batches in RUNTIMES.get(file.suffix, {}).items()
        for precision in (precisions if runtime == OPENVINO else ("f32",))
        for batch in batches
    ]
    installed = {runtime for runtime, package in PACKAGES.items() if importlib.util.find_spec(package)}
    return sorted((case for case in listed if case.runtime in installed), key=lambda case: case.runtime != ORT)


def runner(case: Case, pixels: np.ndarray) -> Callable[[], Any]:
    """Returns a function that runs a file in a runtime.

    Inputs are in the runtime's memory before, and outputs stay there, as JAX's do: nothing is copied to or from Python.

    Args:
        case: the file and the runtime.
        pixels: images, the channels last; the file gets them in its layout.
    """
    return RUNNERS[case.runtime](case, pixels)


def _placed(pixels: np.ndarray, shape: Sequence[object]) -> np.ndarray:
    """Returns images with the channels last in the layout of an input of a shape."""
    return pixels if shape[-1] == pixels.shape[-1] else np.ascontiguousarray(pixels.transpose(TO_NCHW))


def _in_onnxruntime(case: Case, pixels: np.ndarray) -> Callable[[], Any]:
    import onnxruntime

    session = formats.inference_session(str(case.file))
    binding, taken = session.io_binding(), session.get_inputs()[0]
    value = onnxruntime.OrtValue.ortvalue_from_numpy(_placed(pixels, taken.shape))
    binding.bind_ortvalue_input(taken.name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return functools.partial(session.run_with_iobinding, binding)


def _in_openvino(case: Case, pixels: np.ndarray) -> Callable[[], Any]:
    library = openvino.import_openvino()
    model = library.Core().read_model(str(case.file))
    lengths = [length.get_length() if length.is_static else None for length in model.input().partial_shape]
    pixels = _placed(pixels, lengths)
    if case.is_fixed:
        model.reshape(list(pixels.shape))
    request = openvino.compiled_model(model, case.precision).create_infer_request()
    request.set_input_tensor(library.Tensor(pixels))
    return functools.partial(request.infer, share_outputs=True)


def _in_jax(case: Case, pixels: np.ndarray) -> Callable[[], Any]:
    exported = jax.export.deserialize(bytearray(case.file.read_bytes()))
    function, image = jax.jit(exported.call), jax.device_put(_placed(pixels, exported.in_avals[0].shape))
    return lambda: jax.block_until_ready(function(image))


def _in_litert(case: Case, pixels: np.ndarray) -> Callable[[], Any]:
    loaded = litert.open_interpreter(case.file.read_bytes())
    loaded.allocate_tensors()
    loaded.set_tensor(loaded.get_input_details()[0]["index"], pixels)
    return loaded.invoke


RUNNERS = {ORT: _in_onnxruntime, OPENVINO: _in_openvino, JAX: _in_jax, LITERT: _in_litert}


def photographs(places: Sequence[str], *, count: int, image_size: int) -> np.ndarray:
    """Returns the first photographs, letterboxed: f32[count, image_size, image_size, 3]."""
    images = [decode_image(path) for path in predict.find_images(places)[:count]]
    return pipeline.fitted(images, size=(image_size, image_size), batch_size=count)[0]


def network_runner(network: Trained, pixels: np.ndarray) -> Callable[[], Any]:
    """Returns a function that runs a network in JAX, all tasks with decoding, on images in its memory."""
    function = evaluate.make_predict(network.setup.model, network.tasks)
    device_inputs, names = jax.device_put((network.variables, pixels)), tuple(network.names)
    return lambda: jax.block_until_ready(function(*device_inputs, names=names))


def rows(listed: Sequence[Case], times: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, ...]]:
    """Yields the names of each case, and for each number of images the median in ms and its ratios.

    The ratios are to the first file in the same runtime, and to the network, as far as these were timed.

    Args:
        listed: cases.
        times: ms by label of the case, and perhaps by `NETWORK`, for each number of images.
    """
    for case in listed:
        compared, cells = (case._replace(file=listed[0].file).label, NETWORK), []
        for by_case in times:
            ratios = (by_case[case.label] / by_case.get(label, math.nan) for label in compared)
            cells += [f"{by_case[case.label]:.2f}", *(f"{ratio:.2f}" if ratio > 0 else "" for ratio in ratios)]
        yield case.file.name, *case[1:], *cells
    if NETWORK in times[0]:
        cells = [text for by_case in times for text in (f"{by_case[NETWORK]:.2f}", "", "1.00")]
        yield NETWORK, JAX, "f32", "fixed", *cells


def main(arguments: Sequence[str]) -> None:
    """Prints the medians of every file in every runtime, and their ratios to those of the first file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="of one network, the one to compare with first")
    parser.add_argument("--images", nargs="+", required=True, help="photographs, or folders of them")
    parser.add_argument("--weights", type=Path, help="work directory of the network, to time it in JAX too")
    parser.add_argument("--image_size", type=int, default=512, help="of the files, px")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["f32"], help="of OpenVINO")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args(arguments)
    listed, times = cases(options.files, options.precisions), []
    network = trained.load(options.weights) if options.weights else None
    for count in options.batch_sizes:
        pixels = photographs(options.images, count=count, image_size=options.image_size)
        runs = {case.label: runner(case, pixels) for case in listed}
        if network:
            runs[NETWORK] = network_runner(network, pixels)
        times.append(check.latencies_ms(runs, repeats=options.repeats))
    columns = [name for count in options.batch_sizes for name in (f"ms of {count}", "of the first", f"of {NETWORK}")]
    table = Table("file", "runtime", "precision", "batch", *columns)
    for row in rows(listed, times):
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
