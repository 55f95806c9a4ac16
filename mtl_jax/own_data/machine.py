"""Speed of this machine, estimated from the time of a matrix product."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

import numpy as np

SIDE = 768  # of the matrices
TIMED_SECONDS = 0.3  # duration of the measurement; the fastest product counts, because other programs delay some
# Training time of one image of 512 px, in such matrix products: measured on two cores of a Xeon with the network of
# `recipes.share_kernels`.
PRODUCTS_PER_IMAGE = 20.0
ACCELERATED = 0.004  # s per image of 512 px; an upper bound for GPUs
START_SECONDS = 25.0  # imports, data inspection, latency measurement and report
STAGE_SECONDS = 20.0  # compilation of a stage on the reference machine
REFERENCE = 0.0035  # s per product of the reference machine


class Machine(NamedTuple):
    """Device and speed of this machine.

    Attributes:
        device: name of the device.
        cores: CPU cores available to this process.
        accelerated: whether a GPU or TPU computes.
        image_seconds: training time of an image of 512 px.
        start_seconds: fixed time of a run.
        stage_seconds: fixed time of a stage.
    """

    device: str
    cores: int
    accelerated: bool
    image_seconds: float
    start_seconds: float
    stage_seconds: float

    def __str__(self) -> str:
        return self.device if self.accelerated else f"{self.cores} CPU cores"


def measure() -> Machine:
    """Measures the machine, in a fraction of a second."""
    import jax

    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    accelerated = device.platform != "cpu"
    seconds = _product_seconds()
    slowdown = max(1.0, seconds / REFERENCE)
    return Machine(
        device=device.device_kind,
        cores=cores,
        accelerated=accelerated,
        image_seconds=ACCELERATED if accelerated else PRODUCTS_PER_IMAGE * seconds,
        start_seconds=START_SECONDS * slowdown,
        stage_seconds=STAGE_SECONDS * slowdown,
    )


def _product_seconds() -> float:
    matrix = np.random.default_rng(0).random((SIDE, SIDE), np.float32)
    durations, ends = [], time.perf_counter() + TIMED_SECONDS
    while not durations or time.perf_counter() < ends:
        start_time = time.perf_counter()
        np.matmul(matrix, matrix)
        durations.append(time.perf_counter() - start_time)
    return min(durations)
