"""What `benchmark.py gpu` finds out in one process: peaks, whether results are the CPU's, depthwise layers."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from benchmarks import problem as problem_lib
from benchmarks.problem import Problem
from mtl_jax import balance, tasks
from mtl_jax.evaluation import evaluate
from mtl_jax.kernels import cpu_kernels
from mtl_jax.models import depthwise, depthwise_forms, multi_task

Row = dict[str, Any]

# Largest difference over the largest value, in float32 at the highest precision of products.
TOLERANCE = {"depthwise": 1e-4, "network": 1e-3, "losses": 1e-3, "balance": 1e-3}
FIRST_METHODS = ("sum", "pcgrad", "mgda", "nash_mtl", "upgrad", "cagrad", "imtl_g", "uncertainty")
WINDOWS = ((3, 1, 1), (5, 2, 1), (3, 1, 2))  # kernel, stride, dilation
# Side of the input in cells at 512 px, channels, kernel, stride: depthwise layers of MobileNetV3-Small.
LAYERS = ((256, 16, 3, 2), (128, 72, 3, 2), (64, 96, 5, 2), (32, 240, 5, 1), (16, 576, 5, 1))
CALLS = 5  # of a timed function between two looks at the clock, so that the device never waits for Python


def main(arguments: list[str]) -> int:
    """Prints one JSON object a line; "quick" asks for tiny sizes, which a CPU gets anyway."""
    quick = "quick" in arguments or jax.default_backend() == "cpu"
    with cpu_kernels.left_out():
        for rows in (_machine(quick), _correctness(quick), _layers(quick), _methods(quick, first=False)):
            for row in rows:
                print(json.dumps(row), flush=True)
    return 0


def _machine(quick: bool) -> Iterator[Row]:
    device = jax.devices()[0]
    facts: dict[str, Any] = {"backend": jax.default_backend(), "device": device.device_kind}
    row: Row = {"section": "machine", "device": device.device_kind, "count": jax.device_count()}
    if facts["backend"] == "cpu":
        row["message"] = "no GPU is here: tiny sizes, which show only that everything runs"
    facts["tflops"] = {name: _tflops(256 if quick else 8192, name) for name in ("bfloat16", "float32")}
    model, records, variables, size = _network(quick)
    facts["gflop_an_image"] = evaluate.gigaflops(model, variables, records, image_size=size)
    peaks = {f"{name}_tflops": value for name, value in facts["tflops"].items()}
    yield row | peaks | {"gflop_an_image": facts["gflop_an_image"], "facts": facts}


def _tflops(side: int, dtype: str) -> float:
    """Of a product of two matrices of random numbers; float32 at the default precision, TF32 where there is one."""
    matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
    return 2 * side**3 / _seconds(jax.jit(jnp.matmul), matrix, matrix) / 1e12


def _network(quick: bool) -> tuple[Any, Any, Any, int]:
    problem = Problem("jax", "infer", backbone="plain_cnn" if quick else "mobilenet_v3_small")
    records = tasks.build(problem_lib.task_settings(problem))
    model = multi_task.build({"backbone": problem.backbone}, records)
    return model, records, multi_task.init_variables(model, key=jax.random.key(0)), 64 if quick else 512


def _correctness(quick: bool) -> Iterator[Row]:
    """The same computations on the device and on its host's CPU."""
    yield from _forms(WINDOWS[:1] if quick else WINDOWS)
    yield from _methods(quick, first=True)
    model, records, variables, _ = _network(quick)
    sample = Problem("jax", "step", batch_size=2, image_size=64)
    image, labels = problem_lib.images(sample), problem_lib.labels(sample)

    def raw(variables: PyTree, image: jax.Array) -> Any:
        return multi_task.eval_raw(model, variables, image, tasks=tuple(records))[0]

    yield _compared("network", "outputs of the network", raw, variables, image)
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(raw, variables, image)
    arrays = {name: generator.normal(size=leaf.shape).astype(np.float32) for name, leaf in shapes.items()}
    for name, record in records.items():
        if quick and record.kind == "detection":  # compiles for long, and is part of the step that is timed
            continue

        def loss(raw: jax.Array, labels: PyTree, record: Any = record) -> Any:
            return jax.value_and_grad(lambda raw: record.loss(raw, labels, (64, 64))[0])(raw)

        yield _compared("losses", f"loss of {record.kind}, and its gradient", loss, arrays[name], labels[name])


def _forms(windows: tuple[tuple[int, int, int], ...]) -> Iterator[Row]:
    generator, channels, size = np.random.default_rng(0), 16, (20, 20)
    for kernel_size, stride, dilation in windows:
        window = depthwise_forms.Window(size, (kernel_size, kernel_size), stride, dilation)
        shapes = ((2, *size, channels), (kernel_size, kernel_size, 1, channels), (2, *window.output_size, channels))
        arrays = [generator.normal(size=shape).astype(np.float32) for shape in shapes]

        def sums(form: str, window: Any = window) -> Callable[..., Any]:
            run = depthwise.FORMS[form]
            return lambda x, kernel, g: (
                run("forward", window, x, kernel),
                run("input_gradient", window, g, kernel),
                run("kernel_gradient", window, x, g),
            )

        for form in ("grouped", "shifted"):
            title = f"depthwise {kernel_size}x{kernel_size}, stride {stride}, dilation {dilation}: {form}"
            yield _compared("depthwise", title, sums(form), *arrays, reference=sums("shifted"))


def _methods(quick: bool, *, first: bool) -> Iterator[Row]:
    """Updates of the balancing methods from three gradients: those that matter most, or the others."""
    other_methods = tuple(name for name in balance.METHODS if name not in FIRST_METHODS)
    names = FIRST_METHODS if first else other_methods
    generator = np.random.default_rng(0)
    grads = {
        "a": generator.normal(size=(3, 8, 4)).astype(np.float32),
        "b": generator.normal(size=(3, 5)).astype(np.float32),
    }
    losses = np.array([0.5, 1.0, 2.0], np.float32)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape[1:], np.float32), grads)
    for name in names[: 2 if first else 0] if quick else names:
        method = balance.METHODS[name]()

        def update(grads: PyTree, losses: jax.Array, method: Any = method) -> PyTree:
            return method.update(grads, method.init(params), params, task_losses=losses)[0]

        yield _compared("balance", f"update of {name}", update, grads, losses)


def _compared(kind: str, title: str, compute: Any, *arguments: Any, reference: Any = None) -> Row:
    """Compares the device's results with the CPU's."""
    with jax.default_matmul_precision("highest"):
        device_result = _on(jax.devices()[0], compute, arguments)
        expected = _on(jax.devices("cpu")[0], reference or compute, arguments)
    error = max(
        float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-12))
        for a, b in zip(jax.tree.leaves(device_result), jax.tree.leaves(expected), strict=True)
    )
    equal = "yes" if error <= TOLERANCE[kind] else "no"
    return {"section": "correctness", "what": title, "error": error, "tolerance": TOLERANCE[kind], "equal": equal}


def _on(device: Any, compute: Any, arguments: Any) -> PyTree:
    results = jax.jit(compute)(*jax.device_put(arguments, device))
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), jax.device_get(results))


def _layers(quick: bool) -> Iterator[Row]:
    """Grouped convolution against shifted sums: forward and both gradients of one layer, compiled by itself."""
    batch, layers, dtypes = (2, ((8, 16, 3, 1),), ("float32",)) if quick else (64, LAYERS, ("bfloat16", "float32"))
    for dtype in dtypes:
        for side, channels, size, stride in layers:
            x = jax.random.normal(jax.random.key(0), (batch, side, side, channels), dtype)
            kernel = jax.random.normal(jax.random.key(1), (size, size, 1, channels), dtype)
            row: Row = {"section": "depthwise", "layer": f"{side} x {side} x {channels}, {size}x{size} / {stride}"}
            row |= {"dtype": dtype, "batch_size": batch}
            for form in ("grouped", "shifted"):
                row[f"{form}_ms"] = 1e3 * _layer_seconds(form, x, kernel, stride)
            yield row | {"grouped_to_shifted": row["grouped_ms"] / row["shifted_ms"]}


def _layer_seconds(form: str, x: jax.Array, kernel: jax.Array, stride: int) -> float:
    def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return depthwise.depthwise_conv(x, kernel, stride=stride)

    def forward_and_backward(x: jax.Array, kernel: jax.Array) -> Any:
        y, backward = jax.vjp(forward, x, kernel)
        return y, backward(y)

    with depthwise.traced_in(form):
        return _seconds(jax.jit(forward_and_backward), x, kernel)


def _seconds(function: Callable[..., Any], *arguments: Any, repeats: int = 5) -> float:
    jax.block_until_ready(function(*arguments))
    durations = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready([function(*arguments) for _ in range(CALLS)])
        durations.append((time.perf_counter() - start) / CALLS)
    return statistics.median(durations)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
