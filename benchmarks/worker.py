"""One side of a comparison in a process of its own: computes once for each line that it reads."""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

from benchmarks.problem import Problem
from mtl_jax.runtime import allocator

WARM_UP = 3


def main(specification: str) -> int:
    """Builds the problem; replies to "go" with the seconds of a computation, and at the end with the peak memory."""
    start_time = time.perf_counter()
    problem = Problem(**json.loads(specification))
    if problem.side == "jax":
        from benchmarks import jax_side
        from mtl_jax.runtime import compilation

        compilation.enable_cache()  # as torch.compile does by itself
        compute, device_peak_mb = jax_side.build(problem).compute, jax_side.device_peak_mb
    else:
        from benchmarks import torch_peer

        compute, device_peak_mb = torch_peer.build(problem), torch_peer.device_peak_mb
    compute()
    _send({"first_seconds": time.perf_counter() - start_time})
    for _ in range(WARM_UP - 1):
        compute()
    _send({})
    for line in sys.stdin:
        if line.strip() != "go":
            break
        start = time.perf_counter()
        compute()
        _send({"seconds": time.perf_counter() - start})
    on_device = device_peak_mb()
    _send({"peak_mb": peak_memory_mb() if math.isnan(on_device) else on_device})
    return 0


def peak_memory_mb() -> float:
    """Returns the largest resident size of this process so far, or NaN where the system does not say."""
    try:
        with open("/proc/self/status") as status:
            lines = [line for line in status if line.startswith("VmHWM")]
    except OSError:
        return float("nan")
    return int(lines[0].split()[1]) / 1024


def _send(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    if Problem(**json.loads(sys.argv[1])).keeps_memory:
        allocator.tune()  # as the library's own programs do
    sys.exit(main(sys.argv[1]))
