"""Compares problems fairly: each in its own process, computing in turns, so that the machine's noise meets all."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import benchmarks
from benchmarks.problem import Problem
from mtl_jax.errors import UserError
from mtl_jax.runtime import allocator

OUT_OF_MEMORY = "out of memory"
OUT_OF_MEMORY_SIGNS = ("RESOURCE_EXHAUSTED", "OutOfMemoryError", "out of memory", "Out of memory", "MemoryError")


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
    workers: list[_Worker] = []
    try:
        for problem in problems:  # built one after another: compilers share nothing
            workers.append(_Worker(problem, environment))
            workers[-1].build()
        for _ in range(repeats):
            for worker in workers:
                worker.compute()
        for worker in workers:
            worker.finish()
    finally:
        for worker in workers:
            worker.close()
    return [worker.timing() for worker in workers]


def together(
    problems: Sequence[Problem], *, repeats: int, seconds: float, environment: dict[str, str] | None = None
) -> list[Timing | str]:
    """Builds every problem at the same time, as many cores allow, and then times them in turns.

    Args:
        problems: to be compared.
        repeats: timed computations of each.
        seconds: until what is not done is ended; what was timed by then counts.
        environment: additional environment variables of the sides' processes.

    Returns:
        The timing of each problem, or why there is none.
    """
    workers = [_Worker(problem, environment) for problem in problems]
    late = threading.Event()
    alarm = threading.Timer(seconds, lambda: (late.set(), *(worker.process.kill() for worker in workers)))
    alarm.start()
    failures: dict[_Worker, str] = {}
    rounds = [_Worker.build, *[_Worker.compute] * repeats, _Worker.finish]
    try:
        for act, worker in itertools.product(rounds, workers):
            if worker in failures:
                continue
            try:
                act(worker)
            except UserError as error:
                failures[worker] = f"not done after {seconds:.0f} s" if late.is_set() else str(error)
    finally:
        alarm.cancel()
        for worker in workers:
            worker.close()
    return [worker.timing() if worker.seconds else failures.get(worker, "not timed") for worker in workers]


def timed(compute: Callable[[], Any]) -> float:
    """Returns the seconds of one computation in this process."""
    start = time.perf_counter()
    compute()
    return time.perf_counter() - start


class _Worker:
    """The process of one side, and what it has reported."""

    def __init__(self, problem: Problem, environment: dict[str, str] | None) -> None:
        self.problem, self.first_seconds, self.peak_mb = problem, math.nan, math.nan
        self.seconds: list[float] = []
        # A pipe that nobody reads would stop a compiler that warns a lot.
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 -- `close` closes it
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(dataclasses.asdict(problem))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment_of(problem, environment),
        )

    def build(self) -> None:
        self.first_seconds = self._read_reply()["first_seconds"]
        self._read_reply()

    def compute(self) -> None:
        self.seconds.append(self._ask("go")["seconds"])

    def finish(self) -> None:
        self.peak_mb = self._ask("end")["peak_mb"]

    def timing(self) -> Timing:
        return Timing(self.problem, self.first_seconds, tuple(self.seconds), self.peak_mb)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self._errors.close()

    def _ask(self, word: str) -> dict[str, float]:
        with contextlib.suppress(BrokenPipeError):  # of a process that has ended: reading finds out why
            print(word, file=self.process.stdin, flush=True)
        return self._read_reply()

    def _read_reply(self) -> dict[str, float]:
        for line in self.process.stdout or ():
            if line.startswith("{"):
                return json.loads(line)
        self.process.wait()
        self._errors.seek(0)
        raise UserError(f"the side {self.problem.side} of the benchmark ended early: {cause(self._errors.read())}")


def environment_of(problem: Problem, changes: dict[str, str] | None) -> dict[str, str]:
    """Returns the variables of a side's process; the allocator's settings of this one are not the other sides'."""
    variables = benchmarks.environment(changes)
    if variables.get("GLIBC_TUNABLES") == allocator.TUNABLES and not problem.keeps_memory:
        del variables["GLIBC_TUNABLES"]
    return variables


def cause(errors: str) -> str:
    """Says why a process ended, by what it wrote."""
    if any(sign in errors for sign in OUT_OF_MEMORY_SIGNS):
        return OUT_OF_MEMORY
    last = (errors.strip().splitlines() or ["it said nothing"])[-1]
    hint = "; install it with pip install -e '.[oracle]'" if "No module named 'torch'" in last else ""
    return last + hint
