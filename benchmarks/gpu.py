"""One command for a bare GPU machine: correctness, then speed against PyTorch; rows are written as they are known."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import benchmarks
from benchmarks import turns
from benchmarks.problem import Problem

Rows = list[dict[str, Any]]

STEP_BAR = 1.0  # times torch.compile's step, in bfloat16
PCGRAD_BAR = 1.10  # times the step of the plain sum
# XLA tries every algorithm of a convolution by default, for minutes a program.
XLA_FLAGS = "--xla_gpu_autotune_level=0"


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is measured."""

    image_size: int  # px
    batches: tuple[tuple[int, ...], ...]  # those of a group are built at the same time
    dtypes: tuple[str, ...]
    balance_batch: int
    classifiers: int  # tasks of the balancing; 0 for the flagship's three
    methods: tuple[str, ...]
    settings: tuple[str, ...]  # of `SETTINGS`
    shifted_batch: int  # images of the step whose depthwise sums are shifted; 0 leaves it out
    repeats: int
    backbone: str
    peers: tuple[str, ...]  # in PyTorch


SETTINGS: dict[str, dict[str, Any]] = {
    "one stream a task": {"disjoint": True},
    "one stream, at the features": {"gradient_space": "features"},
}
METHODS = ("sum", "pcgrad", "mgda", "nash_mtl")
FULL = Scale(
    image_size=512,
    batches=((8, 64), (256,)),
    dtypes=("bfloat16", "float32"),
    balance_batch=32,
    classifiers=0,
    methods=METHODS,
    settings=tuple(SETTINGS),
    shifted_batch=64,
    repeats=20,
    backbone="mobilenet_v3_small",
    peers=("torch", "torch_compile"),
)
QUICK = Scale(
    image_size=64,
    batches=((2,),),
    dtypes=("float32",),
    balance_batch=2,
    classifiers=2,
    methods=METHODS[:2],
    settings=tuple(SETTINGS)[1:],
    shifted_batch=0,
    repeats=2,
    backbone="plain_cnn",
    peers=("torch",),
)


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the sections share."""

    scale: Scale
    environment: dict[str, str]
    end: float  # of time.monotonic
    minutes: float
    add: Callable[[dict[str, Any]], None]
    facts: Mapping[str, Any]  # of the machine and the network: backend, gflop_an_image, tflops by dtype

    def seconds(self, share: float) -> float:
        """Returns what a section may take: its share of the whole, or what is left of it."""
        return min(60 * self.minutes * share, self.end - time.monotonic())


def measure(*, minutes: float, quick: bool, on_rows: Callable[[Rows], None]) -> Rows:
    """Runs every section that the time allows, the most important ones first.

    Args:
        minutes: for all; what is not done by then is left out, and says so.
        quick: tiny sizes, which show only that everything runs; so without a GPU too.
        on_rows: gets all rows so far, after each.
    """
    rows: Rows = []

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        on_rows(rows)

    end, environment = time.monotonic() + 60 * minutes, _environment()
    facts = _checks(quick, environment, seconds=60 * minutes * 0.27, add=add)
    scale = QUICK if quick or facts.get("backend") == "cpu" else FULL
    run = _Run(scale, environment, end, minutes, add, facts)
    if not _has_torch():
        add({"section": "step", "side": "torch", "message": "skipped: PyTorch is not installed"})
    first = scale.dtypes[0]
    _beside_torch(run, "step", first, scale.batches[0], share=0.25)
    _balance(run, first, share=0.2)
    _beside_torch(run, "infer", first, scale.batches[0], share=0.15)
    combinations = [
        (program_kind, dtype, batches)
        for batches in scale.batches
        for dtype in scale.dtypes
        for program_kind in ("step", "infer")
    ]
    for program_kind, dtype, batches in combinations:
        if (dtype, batches) != (first, scale.batches[0]):
            _beside_torch(run, program_kind, dtype, batches, share=0.2)
    return rows


def _environment() -> dict[str, str]:
    """Environment of the measured processes, added to this one's: one cache of programs, no search, shared memory."""
    from mtl_jax.runtime import compilation

    environment = {"XLA_FLAGS": os.environ.get("XLA_FLAGS", XLA_FLAGS), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if folder := compilation.enable_cache():
        environment |= {  # as `enable_cache` sets them: processes that share the folder must agree on its limit
            "JAX_COMPILATION_CACHE_DIR": str(folder),
            "JAX_COMPILATION_CACHE_MAX_SIZE": str(compilation.MAX_BYTES),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": str(compilation.MIN_COMPILE_SECONDS),
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
    return environment


def _checks(
    quick: bool, environment: Mapping[str, str], *, seconds: float, add: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Runs `gpu_checks` in a process of its own, and returns what it found out about machine and network."""
    facts: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_checks", *(["quick"] if quick else [])],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=benchmarks.environment(environment),
        )
        alarm = threading.Timer(seconds, process.kill)
        alarm.start()
        try:
            with process:
                for line in process.stdout or ():
                    if line.startswith("{"):
                        add(json.loads(line))
                        facts |= json.loads(line).get("facts", {})
        finally:
            late = not alarm.is_alive()
            alarm.cancel()
        if process.returncode:
            errors.seek(0)
            cause = f"not done after {seconds:.0f} s" if late else turns.cause(errors.read())
            add({"section": "correctness", "what": "the rest", "message": cause})
    return facts


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _beside_torch(run: _Run, program_kind: str, dtype: str, batches: tuple[int, ...], *, share: float) -> None:
    """Times a step, or inference, of all sides; adds rows with ratios to PyTorch and the share of the card's peak."""
    base_problem = Problem(
        "jax", program_kind, image_size=run.scale.image_size, dtype=dtype, backbone=run.scale.backbone
    )
    names = ("jax", *(run.scale.peers if _has_torch() else ()))
    sides = [(side, batch, "") for batch in batches for side in names]
    if program_kind == "step" and run.scale.shifted_batch in batches:
        sides.append(("jax", run.scale.shifted_batch, "shifted"))
    problems = [
        dataclasses.replace(base_problem, side=side, batch_size=batch, depthwise=depthwise)
        for side, batch, depthwise in sides
    ]
    timings = _timed(run, problems, share)
    finished_timings = [timing for timing in timings if isinstance(timing, turns.Timing)]
    compiled = {
        timing.problem.batch_size: timing.median
        for timing in finished_timings
        if timing.problem.side == "torch_compile"
    }
    for problem, timing in zip(problems, timings, strict=True):
        row = _row(program_kind, problem, timing)
        if isinstance(timing, turns.Timing):
            row |= _peak_share(run, timing)
            if problem.side == "jax" and problem.batch_size in compiled:
                row["ratio_to_torch_compile"] = timing.median / compiled[problem.batch_size]
                if (program_kind, dtype, problem.depthwise) == ("step", "bfloat16", ""):
                    row |= _bar(row["ratio_to_torch_compile"], STEP_BAR)
        run.add(row)


def _balance(run: _Run, dtype: str, *, share: float) -> None:
    """Times balancing methods against the plain sum."""
    scale = run.scale
    base_problem = Problem("jax", "step", scale.balance_batch, scale.image_size, dtype)
    base_problem = dataclasses.replace(base_problem, backbone=scale.backbone, classifiers=scale.classifiers)
    cases = [(name, method) for name in scale.settings for method in scale.methods]
    problems = [dataclasses.replace(base_problem, balance=method, **SETTINGS[name]) for name, method in cases]
    timings = _timed(run, problems, share)
    sums = {
        name: timing.median
        for (name, method), timing in zip(cases, timings, strict=True)
        if method == "sum" and isinstance(timing, turns.Timing)
    }
    for (name, method), problem, timing in zip(cases, problems, timings, strict=True):
        row = _row("balance", problem, timing) | {"setting": name, "balance": method}
        if isinstance(timing, turns.Timing) and name in sums:
            row["ratio_to_sum"] = timing.median / sums[name]
            if method == "pcgrad":
                row |= _bar(row["ratio_to_sum"], PCGRAD_BAR)
        run.add(row)


def _timed(run: _Run, problems: list[Problem], share: float) -> list[turns.Timing | str]:
    """As `turns.together`, but a side whose neighbours left it too little memory is tried once more alone."""
    deadline = time.monotonic() + run.seconds(share)

    def run_group(problem_list: list[Problem]) -> list[turns.Timing | str]:
        seconds_left = deadline - time.monotonic()
        if seconds_left <= 1:
            return ["left out: no time"] * len(problem_list)
        return turns.together(
            problem_list, repeats=run.scale.repeats, seconds=seconds_left, environment=run.environment
        )

    timings = run_group(problems)
    for number, timing in enumerate(timings):
        if isinstance(timing, str) and turns.OUT_OF_MEMORY in timing and len(problems) > 1:
            (result,) = run_group([problems[number]])
            timings[number] = timing if isinstance(result, str) and result.startswith("left out") else result
    return timings


def _row(section: str, problem: Problem, timing: turns.Timing | str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "section": section,
        "side": f"{problem.side}, {problem.depthwise} sums" if problem.depthwise else problem.side,
        "dtype": problem.dtype,
        "batch_size": problem.batch_size,
        "image_size": problem.image_size,
    }
    if isinstance(timing, str):
        return row | {"message": timing}
    images = problem.batch_size * (3 if problem.disjoint else 1)
    return row | {
        "median_ms": 1e3 * timing.median,
        "min_ms": 1e3 * min(timing.seconds),
        "max_ms": 1e3 * max(timing.seconds),
        "images_per_second": images / timing.median,
        "peak_mb": timing.peak_mb,
        "first_seconds": timing.first_seconds,
    }


def _peak_share(run: _Run, timing: turns.Timing) -> dict[str, float]:
    """The network's operations, three times those of a forward pass in a step, over what the card can do."""
    peak, forward = run.facts.get("tflops", {}).get(timing.problem.dtype), run.facts.get("gflop_an_image")
    if not peak or not forward or run.scale.backbone != FULL.backbone:
        return {}
    operations = (3 if timing.problem.what == "step" else 1) * forward * 1e9 * timing.problem.batch_size
    return {"share_of_peak": operations / timing.median / (peak * 1e12)}


def _bar(ratio: float, bar: float) -> dict[str, Any]:
    return {"bar": f"<= {bar:.2f}", "met": "yes" if ratio <= bar else "no"}


def tables(rows: Rows) -> str:
    """Returns one Markdown table for each section, with the columns that its rows have."""
    sections = dict.fromkeys(row["section"] for row in rows)
    return "\n\n".join(_table(name, [row for row in rows if row["section"] == name]) for name in sections)


def _table(name: str, rows: Rows) -> str:
    hidden_columns = ("section", "facts")
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in hidden_columns))
    columns.sort(key="message".__eq__)  # words last
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(key, "")) for key in columns] for row in rows)]
    return "\n".join([f"## {name}", "", *("| " + " | ".join(line) + " |" for line in lines)])


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")
