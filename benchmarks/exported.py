"""Latency of the exported ONNX file, compared with the network in JAX and with the file that `torch.onnx` writes.

The file runs in onnxruntime, and in OpenVINO where that is installed.
"""

from __future__ import annotations

import functools
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import problem as problem_lib
from benchmarks import runtimes
from benchmarks.problem import Problem
from benchmarks.turns import timed
from mtl_jax import tasks
from mtl_jax.errors import UserError
from mtl_jax.evaluation import evaluate
from mtl_jax.export import formats
from mtl_jax.export.network import model_output_function
from mtl_jax.models import multi_task

BATCH_SIZES = (1, 8)
PAUSE_SECONDS = 0.02  # before each pass: onnxruntime's threads keep their cores busy for a while after a pass
RATIOS = (
    ("onnx", "jax"),
    ("openvino", "jax"),
    ("onnx", "torch_onnx"),
    ("openvino", "torch_onnx"),
    ("jax", "torch_onnx"),
)
Rows = list[dict[str, Any]]


def measure(*, image_size: int, repeats: int, peer: str = "") -> Rows:
    """Measures the latency of one network on the same images in every program, alternating in one process.

    Args:
        image_size: px, both sides.
        repeats: timed passes of each program.
        peer: "torch" adds the file that `torch.onnx` writes of the PyTorch peer with the same weights.

    Returns:
        A row for each decoding and batch size.
    """
    records = tasks.build(problem_lib.task_settings(Problem("jax", "infer")))
    model = multi_task.build({}, records)
    variables = multi_task.init_variables(model, key=jax.random.key(0), image_size=image_size)
    predict, names, rows = evaluate.make_predict(model, records), tuple(records), []

    @functools.partial(jax.jit, static_argnames="names")
    def forward(variables: Any, image: Any, names: tuple[str, ...]) -> Any:
        return multi_task.apply_eval(model, variables, image, tasks=names)

    with tempfile.TemporaryDirectory() as folder:
        for decode in ("none", "all"):
            files = {"onnx": Path(folder) / f"{decode}.onnx"}
            image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.float32)
            function = model_output_function(model, records, variables, decode)
            formats.write_onnx(function, files["onnx"], image, layout="nchw")
            if peer:
                files["torch_onnx"] = Path(folder) / f"{decode}-torch.onnx"
                _write_peer(files["torch_onnx"], variables, image_size, decode)
            cases = {name: runtimes.Case(path, runtimes.ORT) for name, path in files.items()}
            if importlib.util.find_spec("openvino"):
                cases["openvino"] = runtimes.Case(files["onnx"], runtimes.OPENVINO, batch="fixed")
            for batch_size in BATCH_SIZES:
                pixels = problem_lib.images(Problem("jax", "infer", batch_size, image_size))
                device_inputs = jax.device_put((variables, pixels))
                programs = {name: runtimes.runner(case, pixels) for name, case in cases.items()}
                network = forward if decode == "none" else predict
                programs["jax"] = lambda device_inputs=device_inputs, network=network: jax.block_until_ready(
                    network(*device_inputs, names=names)
                )
                row = {"decode": decode, "images": batch_size} | _alternate(programs, repeats)
                rows.append(row | {f"{name}_nodes": formats.node_count(path) for name, path in files.items()})
    return rows


def _write_peer(path: Path, variables: Any, image_size: int, decode: str) -> None:
    try:
        from benchmarks import torch_onnx
    except ImportError as error:
        raise UserError(f"--peer torch needs PyTorch ({error}): pip install -e '.[oracle]'") from error
    torch_onnx.write(path, variables, image_size=image_size, decode=decode)


def _alternate(programs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Returns median and minimum latencies, and median ratios within a turn, which are least sensitive to noise."""
    for run in programs.values():
        run()

    def timed_after_pause(run: Callable[[], Any]) -> float:
        time.sleep(PAUSE_SECONDS)
        return timed(run)

    turns = [{name: timed_after_pause(run) for name, run in programs.items()} for _ in range(repeats)]
    figures = {}
    for name in programs:
        times = [turn[name] for turn in turns]
        figures |= {f"{name}_ms": 1e3 * statistics.median(times), f"{name}_min_ms": 1e3 * min(times)}
    for first, second in RATIOS:
        if {first, second} <= programs.keys():
            figures[f"{first}_of_{second}"] = statistics.median(turn[first] / turn[second] for turn in turns)
            figures[f"{first}_of_{second}_min"] = figures[f"{first}_min_ms"] / figures[f"{second}_min_ms"]
    return figures
