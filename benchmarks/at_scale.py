"""A model of a run on many accelerators, from a step's measured time and what its program exchanges."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import benchmarks
from mtl_jax.errors import UserError

DEVICES = (1, 8, 16, 32, 64, 128, 256, 512, 1024)
PER_HOST = 8  # accelerators
EXCHANGE_PX = 96  # of the program whose exchanges are counted: they do not depend on the size of images
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1}
_ALL_REDUCE = re.compile(r"= (.+?) all-reduce(?:-start)?\(")
_ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\]")


def all_reduces(program: str) -> tuple[int, int]:
    """Counts a compiled program's sums over devices.

    Args:
        program: as text of XLA's.

    Returns:
        How many there are, and the bytes that each device puts into all of them.
    """
    operations = [match[1] for match in map(_ALL_REDUCE.search, program.splitlines()) if match]
    sizes = (
        BYTES[kind] * math.prod(int(length) for length in shape.split(",") if length)
        for arrays in operations
        for kind, shape in _ARRAY.findall(arrays)
        if kind in BYTES
    )
    return len(operations), sum(sizes)


def exchange_seconds(devices: int, count: int, size: int, *, bytes_per_second: float, latency: float) -> float:
    """Time of a step's sums by rings, none of it hidden behind computing: an upper bound.

    Args:
        devices: in the ring.
        count: of the sums.
        size: bytes of all of them.
        bytes_per_second: of a device's link, each way.
        latency: of one message, seconds; a sum needs 2 log2(devices) by a tree.

    References:
        Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH", 2005.
    """
    if devices == 1:
        return 0.0
    return 2 * size * (devices - 1) / devices / bytes_per_second + 2 * math.log2(devices) * count * latency


def rows(
    step: float,
    count: int,
    size: int,
    *,
    batch_size: int,
    bytes_per_second: float,
    latency: float,
    learning_rate: float,
    devices: Sequence[int] = DEVICES,
) -> list[dict[str, Any]]:
    """Returns what each number of devices needs and reaches.

    Args:
        step: seconds on one device.
        count: of the sums of a step.
        size: bytes of them.
        batch_size: images of a device.
        bytes_per_second: as for `exchange_seconds`.
        latency: as for `exchange_seconds`.
        learning_rate: for one device's batch.
        devices: numbers of them.
    """
    rows_made = []
    for number in devices:
        exchange = exchange_seconds(number, count, size, bytes_per_second=bytes_per_second, latency=latency)
        rate = number * batch_size / (step + exchange)
        rows_made.append(
            {
                "devices": number,
                "global_batch": number * batch_size,
                # Adam's rate grows with the root of the batch (Malladi et al., "On the SDEs and Scaling Rules for
                # Adaptive Gradient Algorithms", 2022).
                "learning_rate": learning_rate * math.sqrt(number),
                "step_ms": 1e3 * (step + exchange),
                "exchange_ms": 1e3 * exchange,
                "efficiency": step / (step + exchange),
                "images_per_second": rate,
                "images_per_second_of_a_host": rate * min(number, PER_HOST) / number,
            }
        )
    return rows_made


def counted() -> dict[str, int]:
    """Compiles the step for two virtual devices in a process of its own, and counts its sums."""
    program = (
        "import json\n"
        "from benchmarks import at_scale, jax_side, problem\n"
        f"made = jax_side.build(problem.Problem('jax', 'step', 2, {EXCHANGE_PX}))\n"
        "print(json.dumps(dict(zip(('count', 'bytes'), at_scale.all_reduces(made.program)))))"
    )
    environment = benchmarks.environment({"XLA_FLAGS": "--xla_force_host_platform_device_count=2"})
    process = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    if process.returncode:
        raise UserError(f"the program for two devices failed: {(process.stderr.strip().splitlines() or ['?'])[-1]}")
    return json.loads(process.stdout.strip().splitlines()[-1])
