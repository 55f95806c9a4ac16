"""Time of exported ONNX files in onnxruntime and, where it is installed, OpenVINO: photographs, in turns.

python -m benchmarks.runtimes exported/*.onnx --images data/mini-coco-det/val --batch_sizes 1 8
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from mtl_jax import predict
from mtl_jax.data import pipeline
from mtl_jax.data.images import decode_image
from mtl_jax.export import formats
from mtl_jax.export.network import TO_NCHW

PRECISIONS = ("f32", "bf16")  # OpenVINO's INFERENCE_PRECISION_HINT
ORT, OPENVINO = "onnxruntime", "OpenVINO"


class Case(NamedTuple):
    """A file in a runtime."""

    file: Path
    runtime: str
    precision: str = "f32"
    batch: str = "dynamic"  # or fixed


def cases(files: Sequence[Path], precisions: Sequence[str]) -> list[Case]:
    """Lists the files in each installed runtime, in OpenVINO with a dynamic and with a fixed batch size."""
    listed = [Case(file, ORT) for file in files]
    if importlib.util.find_spec("openvino"):
        batches = ("dynamic", "fixed")
        listed += [Case(file, OPENVINO, kind, batch) for file in files for kind in precisions for batch in batches]
    return listed


def seconds_of(listed: Sequence[Case], pixels: np.ndarray, *, repeats: int) -> dict[Case, list[float]]:
    """Times the cases on one batch, each once per turn in a random order.

    Args:
        listed: cases.
        pixels: images, channels last, RGB in 0..1.
        repeats: turns, before which each case runs twice.

    Returns:
        Case -> seconds of each turn.
    """
    generator = np.random.default_rng(0)
    runs = [_runner(case, pixels) for case in listed]
    seconds: dict[Case, list[float]] = {case: [] for case in listed}
    for turn in range(-2, repeats):
        for number in generator.permutation(len(listed)).tolist():
            start = time.perf_counter()
            runs[number]()
            if turn >= 0:
                seconds[listed[number]].append(time.perf_counter() - start)
    return seconds


def _runner(case: Case, pixels: np.ndarray) -> Callable[[], Any]:
    formats.require_packages("onnx" if case.runtime == ORT else "openvino")
    import onnx

    lengths = onnx.load(str(case.file), load_external_data=False).graph.input[0].type.tensor_type.shape.dim
    if lengths[1].dim_value == pixels.shape[-1]:
        pixels = np.ascontiguousarray(pixels.transpose(TO_NCHW))
    if case.runtime == ORT:
        run = formats.open_session(str(case.file))
        return lambda: run(pixels)
    import openvino

    core: Any = openvino.Core()
    model = core.read_model(str(case.file))
    if case.batch == "fixed":
        model.reshape(list(pixels.shape))
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": case.precision}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer({0: pixels})


def photographs(places: Sequence[str], *, count: int, image_size: int) -> np.ndarray:
    """Returns the first photographs, letterboxed: f32[count, image_size, image_size, 3]."""
    images = [decode_image(path) for path in predict.find_images(places)[:count]]
    return pipeline.fitted(images, size=(image_size, image_size), batch_size=count)[0]


def rows(seconds: dict[int, dict[Case, list[float]]]) -> Iterator[tuple[str, ...]]:
    """Yields for each case its names, and for each number of images the median in ms and the ratio to the first file.

    Args:
        seconds: number of images -> case -> seconds.
    """
    for case in next(iter(seconds.values())):
        columns = []
        for by_case in seconds.values():
            first = next(other for other in by_case if other[1:] == case[1:])
            median, reference = (1e3 * statistics.median(by_case[each]) for each in (case, first))
            columns += [f"{median:.2f}", f"{median / reference:.2f}"]
        yield case.file.name, *case[1:], *columns


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
    listed, seconds = cases(options.files, options.precisions), {}
    for count in options.batch_sizes:
        pixels = photographs(options.images, count=count, image_size=options.image_size)
        seconds[count] = seconds_of(listed, pixels, repeats=options.repeats)
    columns = [name for count in options.batch_sizes for name in (f"ms of {count}", "of the first")]
    table = Table("file", "runtime", "precision", "batch", *columns)
    for row in rows(seconds):
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
