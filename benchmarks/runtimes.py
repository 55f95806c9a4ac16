"""Time of exported ONNX files in onnxruntime and, where it is installed, OpenVINO: photographs, in turns.

python -m benchmarks.runtimes exported/*.onnx --images data/mini-coco-det/val --batch_sizes 1 8
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from mtl_jax import predict
from mtl_jax.data import pipeline
from mtl_jax.data.images import decode_image
from mtl_jax.export import check, formats, openvino
from mtl_jax.export.network import TO_NCHW

PRECISIONS = ("f32", "bf16")  # OpenVINO's INFERENCE_PRECISION_HINT
ORT, OPENVINO = "onnxruntime", "OpenVINO"


class Case(NamedTuple):
    """A file in a runtime."""

    file: Path
    runtime: str
    precision: str = "f32"
    batch: str = "dynamic"  # or fixed

    @property
    def label(self) -> str:
        """What no other case is called."""
        return " ".join(map(str, self))


def cases(files: Sequence[Path], precisions: Sequence[str]) -> list[Case]:
    """Lists the files in each installed runtime, in OpenVINO with a dynamic and with a fixed batch size."""
    listed = [Case(file, ORT) for file in files]
    if importlib.util.find_spec("openvino"):
        batches = ("dynamic", "fixed")
        listed += [Case(file, OPENVINO, kind, batch) for file in files for kind in precisions for batch in batches]
    return listed


def runner(case: Case, pixels: np.ndarray) -> Callable[[], Any]:
    """Returns a function that runs a file in a runtime.

    Inputs are in the runtime's memory before, and outputs stay there, as JAX's do: nothing is copied to or from Python.

    Args:
        case: the file and the runtime.
        pixels: images, the channels last; the file gets them in its layout.
    """
    formats.require_packages("onnx" if case.runtime == ORT else "openvino")
    import onnx

    lengths = onnx.load(str(case.file), load_external_data=False).graph.input[0].type.tensor_type.shape.dim
    if lengths[1].dim_value == pixels.shape[-1]:
        pixels = np.ascontiguousarray(pixels.transpose(TO_NCHW))
    return (_in_onnxruntime if case.runtime == ORT else _in_openvino)(case, pixels)


def _in_onnxruntime(case: Case, pixels: np.ndarray) -> Callable[[], Any]:
    import onnxruntime

    session = formats.inference_session(str(case.file))
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, onnxruntime.OrtValue.ortvalue_from_numpy(pixels))
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return functools.partial(session.run_with_iobinding, binding)


def _in_openvino(case: Case, pixels: np.ndarray) -> Callable[[], Any]:
    library = openvino.import_openvino()
    model = library.Core().read_model(str(case.file))
    if case.batch == "fixed":
        model.reshape(list(pixels.shape))
    request = openvino.compiled_model(model, case.precision).create_infer_request()
    request.set_input_tensor(library.Tensor(pixels))
    return functools.partial(request.infer, share_outputs=True)


def photographs(places: Sequence[str], *, count: int, image_size: int) -> np.ndarray:
    """Returns the first photographs, letterboxed: f32[count, image_size, image_size, 3]."""
    images = [decode_image(path) for path in predict.find_images(places)[:count]]
    return pipeline.fitted(images, size=(image_size, image_size), batch_size=count)[0]


def rows(listed: Sequence[Case], times: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, ...]]:
    """Yields the names of each case, and for each number of images the median in ms and its ratio to the first file's.

    Args:
        listed: cases.
        times: ms by label of the case, for each number of images.
    """
    for case in listed:
        first = case._replace(file=listed[0].file)
        medians = [(by_case[case.label], by_case[first.label]) for by_case in times]
        yield case.file.name, *case[1:], *(text for ms, of in medians for text in (f"{ms:.2f}", f"{ms / of:.2f}"))


def main(arguments: Sequence[str]) -> None:
    """Prints the medians of every file in every runtime, and their ratios to those of the first file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="ONNX files of one network, the one to compare with first")
    parser.add_argument("--images", nargs="+", required=True, help="photographs, or folders of them")
    parser.add_argument("--image_size", type=int, default=512, help="of the files, px")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["f32"], help="of OpenVINO")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args(arguments)
    listed, times = cases(options.files, options.precisions), []
    for count in options.batch_sizes:
        pixels = photographs(options.images, count=count, image_size=options.image_size)
        runs = {case.label: runner(case, pixels) for case in listed}
        times.append(check.latencies_ms(runs, repeats=options.repeats))
    columns = [name for count in options.batch_sizes for name in (f"ms of {count}", "of the first")]
    table = Table("file", "runtime", "precision", "batch", *columns)
    for row in rows(listed, times):
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
