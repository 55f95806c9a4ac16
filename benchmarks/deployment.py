"""Size, metrics, latency and memory of exported files, each in its runtimes: the table of docs/deploy.md.

python -m benchmarks.deployment exported exported/litert --images data/mini-coco-det/val --json deployment.json

Metrics are those of the files' own predictions on all validation images, at the size of the files. Boxes of a file that
does not suppress any are suppressed as the network does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import benchmarks
from benchmarks import runtimes
from benchmarks.runtimes import NETWORK, Case
from mtl_jax.experiment import View
from mtl_jax.export import check, formats, litert, metrics, openvino
from mtl_jax.export.network import Form
from mtl_jax.runtime import compilation
from mtl_jax.tasks import boxes
from mtl_jax.tasks.base import Task
from mtl_jax.workdir import trained
from mtl_jax.workdir.trained import Trained

CALLS = 10  # of a file, after which its process prints its memory
CERTAIN = 40.0  # a logit whose sigmoid is 1
SMALLEST = 1e-7  # probability whose logit is finite, as is that of one minus it; its score is never accepted
Row = dict[str, Any]

# Of a process of its own, which gets the file, the precision and the lengths of the input, and imports nothing else; of
# the network, its checkpoint.
PROGRAMS = {
    runtimes.ORT: """
import onnxruntime
session = onnxruntime.InferenceSession(path)
run = lambda: session.run(None, {"image": pixels})
""",
    runtimes.OPENVINO: """
sys.modules["openvino_telemetry"] = None
import openvino
model = openvino.Core().read_model(path)
model.reshape(list(pixels.shape))
settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
run = lambda: request.infer({0: pixels})
""",
    runtimes.JAX: """
import jax
call = jax.jit(jax.export.deserialize(bytearray(open(path, "rb").read())).call)
run = lambda: jax.block_until_ready(call(pixels))
""",
    runtimes.LITERT: """
import os
from ai_edge_litert.interpreter import Interpreter
runner = Interpreter(path, num_threads=os.cpu_count()).get_signature_runner()
run = lambda: runner(image=pixels)
""",
    NETWORK: """
from benchmarks import runtimes
from mtl_jax.runtime import compilation
from mtl_jax.workdir import trained
compilation.enable_cache()
run = runtimes.network_runner(trained.load(path), pixels)
""",
}
BEFORE = """
import sys, numpy
path, precision, *lengths = sys.argv[1:]
pixels = numpy.zeros([int(length) for length in lengths], "float32")
"""
AFTER = f"""
for _ in range({CALLS}):
    run()
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


class File(NamedTuple):
    """An exported file and what model.json says of it."""

    path: Path
    difference: str  # from the network, as the export measured it
    description: Mapping[str, Any]

    @property
    def megabytes(self) -> float:
        """Size of the file, with that of its weights."""
        weights = (self.path.with_suffix(".bin"),) if self.path.suffix == ".xml" else ()
        return formats.Exported(self.path, None, None, extra_files=weights).size / 1e6

    @property
    def lengths(self) -> list[int]:
        """Shape of the input with one image."""
        return [1, *self.description["input"]["shape"][1:]]


def files_in(folder: Path) -> list[File]:
    """Returns the files of an exported folder."""
    description = json.loads((folder / "model.json").read_text())
    differences = description["differences"]
    return [File(folder / name, differences[label], description) for label, name in description["files"].items()]


def opened(file: File, case: Case) -> formats.Run:
    """Returns a file in a runtime as a function of any number of images, the channels last."""
    names = [name for task in file.description["tasks"].values() for name in task["outputs"]]
    openers = {
        runtimes.ORT: lambda path: formats.open_session(str(path)),
        runtimes.OPENVINO: lambda path: openvino.open_file(path, names, file.lengths, case.precision),
        runtimes.JAX: formats.open_stablehlo,
        runtimes.LITERT: lambda path: litert.interpreter(path.read_bytes()),
    }
    layout = "nhwc" if file.lengths[-1] == 3 else "nchw"
    return formats.run_in_batches(
        formats.accept_channels_last(openers[case.runtime](file.path), Form(layout=layout)), 1
    )


def main_metrics(network: Trained, run: formats.Run, view: View) -> dict[str, float]:
    """Returns the main metric of each task, from the predictions of a file for all validation images.

    Args:
        network: that was exported.
        run: the file.
        view: input size and crop of the file.
    """

    def predict(variables: None, image: Any, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        del variables
        found: dict[str, dict[str, Any]] = {name: {} for name in names}
        for key, value in run(np.asarray(image)).items():
            name, field = key.rsplit("/", 1)
            if name in found:
                found[name][field] = value
        return {name: suppressed(network.tasks[name], fields) for name, fields in found.items()}

    return metrics.metrics_of_predictions(network, predict, view)


def suppressed(task: Task, predictions: dict[str, Any]) -> dict[str, Any]:
    """Returns predictions in which overlapping boxes are suppressed, where a file leaves that to others."""
    if "label" in predictions or "boxes_xyxy" not in predictions:
        return predictions
    places, score = boxes.to_centre_size(jnp.asarray(predictions["boxes_xyxy"])), jnp.asarray(predictions["score"])
    # A score is the geometric mean of a certain objectness and of this probability.
    logits = jax.scipy.special.logit(jnp.clip(jnp.square(score), SMALLEST, 1 - SMALLEST))
    parts = places, jnp.full_like(places[..., :1], CERTAIN), logits
    return jax.device_get(task.decode(jnp.concatenate(parts, axis=-1)))


def peak_megabytes(runtime: str, path: Path, lengths: Sequence[int], precision: str = "f32") -> float:
    """Returns the largest memory of a process that runs a file, or the network.

    Args:
        runtime: key of `PROGRAMS`.
        path: of the file, or of the checkpoint.
        lengths: shape of the input.
        precision: of OpenVINO.
    """
    program = BEFORE + PROGRAMS[runtime] + AFTER
    words = [sys.executable, "-c", program, str(path), precision, *map(str, lengths)]
    environment = benchmarks.environment({"JAX_PLATFORMS": "cpu"})
    process = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    return int(process.stdout.split()[-1]) / 1024


def measure(
    folders: Sequence[Path],
    places: Sequence[str],
    data_root: Path | None,
    *,
    precisions: Sequence[str] = ("f32",),
    repeats: int,
) -> list[Row]:
    """Measures the network and every file that a runtime here opens.

    Args:
        folders: of `mtl-jax export`, of one network at one size.
        places: photographs, or folders of them; the first is timed.
        data_root: folder of the datasets; None for that of the run.
        precisions: of OpenVINO.
        repeats: timed calls of each.

    Returns:
        Rows: "file", "runtime", "precision", "mb", "difference", main metrics by task, "ms" and "peak_mb", where known.
    """
    files = [file for folder in folders for file in files_in(folder)]
    first = files[0].description
    view = View(first["input"]["size"][0], crop=first["input"]["crop"])
    network = trained.load(first["checkpoint"], tasks=",".join(first["tasks"]), data_root=data_root)
    by_path = {file.path: file for file in files}
    pixels = runtimes.photographs(places, count=1, image_size=view.image_size)
    listed = [
        case for case in runtimes.cases(list(by_path), precisions) if case.runtime != runtimes.OPENVINO or case.is_fixed
    ]
    calls = {NETWORK: runtimes.network_runner(network, pixels)}
    calls |= {case.label: runtimes.runner(case, pixels) for case in listed}
    times = check.latencies_ms(calls, repeats=repeats)
    by_task = main_metrics(network, check.reference(network)[0], view)
    measured = {"ms": times[NETWORK], "peak_mb": peak_megabytes(NETWORK, Path(first["checkpoint"]), pixels.shape)}
    size = sum(array.nbytes for array in jax.tree.leaves(network.variables)) / 1e6
    rows: list[Row] = [{"file": NETWORK, "runtime": runtimes.JAX, "mb": size, **by_task, **measured}]
    for case in listed:
        file = by_path[case.file]
        by_task = main_metrics(network, opened(file, case), view)
        peak = peak_megabytes(case.runtime, file.path, file.lengths, case.precision)
        measured = {"ms": times[case.label], "peak_mb": peak}
        rows.append({**_of_file(file), "runtime": case.runtime, "precision": case.precision, **by_task, **measured})
    without_runtime = set(by_path) - {case.file for case in listed}
    return [*rows, *(_of_file(file) for file in files if file.path in without_runtime)]


def _of_file(file: File) -> Row:
    path = f"{file.path.parent.name}/{file.path.name}"
    return {"file": path, "mb": file.megabytes, "difference": file.difference}


def main(arguments: Sequence[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="of `mtl-jax export`, of one network at one image size")
    parser.add_argument("--images", nargs="+", required=True, help="photographs, or folders of them")
    parser.add_argument("--data_root", type=Path, help="folder of the datasets; default: that of the run")
    parser.add_argument("--precisions", nargs="+", choices=runtimes.PRECISIONS, default=["f32"], help="of OpenVINO")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args(arguments)
    compilation.enable_cache()
    settings = {"precisions": options.precisions, "repeats": options.repeats}
    rows = measure(options.folders, options.images, options.data_root, **settings)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    names = list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))
    table = Table(*names)
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value := row.get(name, ""), float) else value for name in names))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
