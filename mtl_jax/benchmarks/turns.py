"""Compares problems fairly: each in its own process, computing in turns, so that the machine's noise meets all."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from mtl_jax.benchmarks.problem import Problem
from mtl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one side took."""

    problem: Problem
    first_seconds: float  # from the start of the process to its first result
    seconds: tuple[float, ...]  # of each timed computation
    peak_mb: float  # largest resident memory, compilation included

    @property
    def median(self) -> float:
        """Seconds of the middle computation."""
        return statistics.median(self.seconds)

    def record(self) -> dict[str, Any]:
        """Returns the figures, for JSON."""
        return {
            **dataclasses.asdict(self.problem),
            "median_ms": 1e3 * self.median,
            "min_ms": 1e3 * min(self.seconds),
            "max_ms": 1e3 * max(self.seconds),
            "peak_mb": self.peak_mb,
            "first_seconds": self.first_seconds,
        }


def run(problems: Sequence[Problem], *, repeats: int, environment: dict[str, str] | None = None) -> list[Timing]:
    """Times every problem `repeats` times, in turns.

    Raises:
        UserError: a side could not be built; its last words are given.
    """
    workers = []
    try:
        first = []
        for problem in problems:  # built one after another: compilers share nothing
            worker = subprocess.Popen(
                [sys.executable, "-m", "mtl_jax.benchmarks.worker", json.dumps(dataclasses.asdict(problem))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, **(environment or {})},
            )
            workers.append(worker)
            first.append(_read(worker, problem)["first_seconds"])
            _read(worker, problem)
        seconds: list[list[float]] = [[] for _ in problems]
        for _ in range(repeats):
            for times, worker, problem in zip(seconds, workers, problems, strict=True):
                times.append(_ask(worker, problem, "go")["seconds"])
        peaks = [_ask(worker, problem, "end")["peak_mb"] for worker, problem in zip(workers, problems, strict=True)]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    return [Timing(*each) for each in zip(problems, first, map(tuple, seconds), peaks, strict=True)]


def timed(compute: Callable[[], Any]) -> float:
    """Returns the seconds of one computation in this process."""
    start = time.perf_counter()
    compute()
    return time.perf_counter() - start


def _ask(worker: Any, problem: Problem, word: str) -> dict[str, float]:
    worker.stdin.write(word + "\n")
    worker.stdin.flush()
    return _read(worker, problem)


def _read(worker: Any, problem: Problem) -> dict[str, float]:
    for line in worker.stdout:
        if line.startswith("{"):
            return json.loads(line)
    words = worker.stderr.read().strip().splitlines() or ["it said nothing"]
    hint = "; install it with pip install -e '.[oracle]'" if "No module named 'torch'" in words[-1] else ""
    raise UserError(f"the side {problem.side} of the benchmark ended early: {words[-1]}{hint}")
