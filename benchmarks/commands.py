"""What `scripts/benchmark.py` measures: each function returns rows for the table and for JSON."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmarks
from benchmarks import turns
from benchmarks.problem import LEARNING_RATE, Problem
from mtl_jax.errors import UserError

Rows = list[dict[str, Any]]
MEMORY_KEPT = {"": False, "_memory_kept": True}  # the peers as they come, and with the allocator's settings of JAX


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user may choose."""

    peer: str = ""  # "torch" compares with PyTorch
    batch_size: int = 8
    image_size: int = 512  # px
    dtype: str = "float32"
    repeats: int = 10
    data_root: Path = Path("data")
    methods: str = ""  # names of balancing methods with commas between; "" is all of them
    runs: str = ""  # of `sharing`: network=work directory, with commas between
    svg: Path | None = None  # of `sharing`: gets the frontier
    minutes: float = 8.0  # of `gpu`: for all
    quick: bool = False  # of `gpu`: tiny sizes
    step_ms: float = 0.0  # of `at_scale`: of one device, measured elsewhere; 0 measures it here
    link_gb: float = 12.5  # of `at_scale`: GB/s of a device's link
    latency_us: float = 20.0  # of `at_scale`: of one message
    on_rows: Callable[[Rows], None] = lambda rows: None  # of `gpu`: gets all rows so far, after each


def step(options: Options) -> Rows:
    """Times a training step on the joint loss of three tasks."""
    return _against_peers(Problem("jax", "step", options.batch_size, options.image_size, options.dtype), options)


def infer(options: Options) -> Rows:
    """Times the prediction of all tasks, decoding included, at batch 1 and 16."""
    rows = []
    for batch_size in (1, 16):
        rows += _against_peers(Problem("jax", "infer", batch_size, options.image_size, options.dtype), options)
    return rows


def _against_peers(problem: Problem, options: Options) -> Rows:
    peers = ("torch", "torch_compile") if options.peer == "torch" else ()
    peer_problems = [
        dataclasses.replace(problem, side=side, memory_kept=memory_kept)
        for memory_kept in MEMORY_KEPT.values()
        for side in peers
    ]
    own_timing, *timings = turns.run([problem, *peer_problems], repeats=options.repeats)
    row = own_timing.record()
    for name, memory_kept in MEMORY_KEPT.items():
        peer_timings = [timing for timing in timings if timing.problem.memory_kept is memory_kept]
        fastest = min((timing.median for timing in peer_timings), default=math.nan)
        least = min((min(timing.seconds) for timing in peer_timings), default=math.nan)
        memory = min((timing.peak_mb for timing in peer_timings), default=math.nan)
        row |= {
            f"ratio_of_medians{name}": own_timing.median / fastest,
            f"ratio_of_minima{name}": min(own_timing.seconds) / least,
            f"ratio_of_memory{name}": own_timing.peak_mb / memory,
        }
    return [row, *(timing.record() for timing in timings)]


def balance(options: Options) -> Rows:
    """Times every balancing method against the plain sum, on three streams, on one, and for more tasks."""
    from benchmarks import balance_costs
    from mtl_jax import balance
    from mtl_jax.runtime import compilation

    methods = tuple(name for name in options.methods.split(",") if name) or tuple(balance.METHODS)
    if unknown := sorted(set(methods) - set(balance.METHODS)):
        raise UserError(f"--methods: expected some of {', '.join(balance.METHODS)}, found {', '.join(unknown)}")
    compilation.enable_cache()
    problem = Problem("jax", "step", options.batch_size, options.image_size, options.dtype)
    return balance_costs.measure(problem, methods, repeats=options.repeats)


def scale(options: Options) -> Rows:
    """Images per second against the number of devices: virtual ones on a CPU, which share its cores."""
    rows = []
    for count in (1, 2, 4):
        environment = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
        problem = Problem("jax", "step", options.batch_size, options.image_size, options.dtype)
        (timing,) = turns.run([problem], repeats=options.repeats, environment=environment)
        rows.append({"devices": count, **timing.record(), "images_per_second": options.batch_size / timing.median})
    return rows


def compile_times(options: Options) -> Rows:
    """Seconds from the start of a process to the first step's result, and of the first commands a user types."""
    program = (
        "import time; start = time.perf_counter()\n"
        "from mtl_jax.runtime import compilation; compilation.enable_cache()\n"
        "from mtl_jax.kernels import cpu_kernels; cpu_kernels.start_build()\n"  # as a run does
        "from benchmarks import jax_side, problem\n"
        "imported = time.perf_counter()\n"
        f"jax_side.build(problem.Problem('jax', 'step', {options.batch_size}, {options.image_size})).compute()\n"
        "print(time.perf_counter() - imported, time.perf_counter() - start)"
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("empty cache", "warm cache"):
            environment = benchmarks.environment({"MTL_JAX_CACHE": folder})
            process = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
            if process.returncode:
                raise UserError(f"the program to compile failed: {process.stderr.strip().splitlines()[-1]}")
            first, total = map(float, process.stdout.split()[-2:])
            rows.append({"what": f"first step, {name}", "seconds": first, "with_imports_seconds": total})
    for name, command in {
        "import mtl_jax": ["-c", "import mtl_jax"],
        "python eval.py --help": [str(benchmarks.ROOT / "eval.py"), "--help"],
    }.items():
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        rows.append({"what": name, "seconds": time.perf_counter() - start})
    return rows


def data(options: Options) -> Rows:
    """Images per second of each stream's pipeline alone, in its first epoch and after it, and its decodes."""
    from benchmarks import input_pipeline

    return input_pipeline.measure(options.data_root)


def evaluate(options: Options) -> Rows:
    """Seconds of evaluating each stream's validation images, and of the network's share in it."""
    from benchmarks import evaluation

    return evaluation.measure(options.data_root)


def loop(options: Options) -> Rows:
    """Images per second of the flagship's first stage: its step alone, with input, and in the loop; a checkpoint."""
    from benchmarks import loop
    from mtl_jax.runtime import compilation

    compilation.enable_cache()
    return loop.measure(options.data_root, steps=max(10, options.repeats))


def at_scale(options: Options) -> Rows:
    """A model of the step on 8 to 1,024 devices, from one device's time (--step_ms) and its program's exchanges."""
    from benchmarks import at_scale

    step = options.step_ms / 1e3
    if not step:
        problem = Problem("jax", "step", options.batch_size, options.image_size, options.dtype)
        (timing,) = turns.run([problem], repeats=options.repeats)
        step = timing.median
    reduce_counts = at_scale.counted()
    rows = at_scale.rows(
        step,
        reduce_counts["count"],
        reduce_counts["bytes"],
        batch_size=options.batch_size,
        bytes_per_second=1e9 * options.link_gb,
        latency=1e-6 * options.latency_us,
        learning_rate=LEARNING_RATE,
    )
    return [{"sums": reduce_counts["count"], "exchanged_mb": reduce_counts["bytes"] / 1e6, **row} for row in rows]


def sharing(options: Options) -> Rows:
    """Times one image through each wiring of the flagship, counts parameters; --runs and --svg draw the frontier."""
    from benchmarks import sharing

    runs: dict[str, list[Path]] = {}
    for name, equals, folder in (entry.partition("=") for entry in options.runs.split(",") if entry):
        if not equals:
            raise UserError(f"--runs: expected a network and a work directory, as in shared=runs/seq, found {name!r}")
        runs.setdefault(name, []).append(Path(folder))
    rows = sharing.measure(options.data_root, image_size=options.image_size, repeats=options.repeats, runs=runs)
    if options.svg:
        options.svg.write_text(sharing.frontier_svg(rows))
    return rows


def hydra(options: Options) -> Rows:
    """Times one image through one body with 1, 2, 3 and 8 heads, and through as many networks of one task."""
    from benchmarks import hydra

    return hydra.measure(image_size=options.image_size, repeats=options.repeats)


def backbones(options: Options) -> Rows:
    """Times one image and a training step at half its size with each backbone, under the flagship's neck and head."""
    from benchmarks import backbones

    one_image = Problem("jax", "infer", 1, options.image_size, options.dtype)
    step = Problem("jax", "step", options.batch_size, options.image_size // 2, options.dtype)
    return backbones.measure({"infer": one_image, "step": step}, repeats=options.repeats)


def roofline(options: Options) -> Rows:
    """Time of each layer, forward and backward, against what the machine's ceilings allow it."""
    from benchmarks import roofline

    return roofline.measure(batch_size=options.batch_size, image_size=options.image_size, repeats=options.repeats)


def gpu(options: Options) -> Rows:
    """Everything to know of one GPU in --minutes: correctness, step and inference compared with PyTorch, balancing."""
    from benchmarks import gpu

    return gpu.measure(minutes=options.minutes, quick=options.quick, on_rows=options.on_rows)


def export(options: Options) -> Rows:
    """Times the ONNX file of the flagship's network at batch 1 and 8, compared with JAX and torch.onnx (--peer)."""
    from benchmarks import exported

    return exported.measure(image_size=options.image_size, repeats=options.repeats, peer=options.peer)


COMMANDS = {
    "step": step,
    "infer": infer,
    "data": data,
    "compile": compile_times,
    "balance": balance,
    "scale": scale,
    "evaluate": evaluate,
    "sharing": sharing,
    "hydra": hydra,
    "backbones": backbones,
    "roofline": roofline,
    "gpu": gpu,
    "export": export,
    "loop": loop,
    "at_scale": at_scale,
}
