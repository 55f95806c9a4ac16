"""Speed of this machine, estimated from the time of a matrix product."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

import numpy as np

SIDE = 768  # of the matrices
TIMED_SECONDS = 0.3  # of products, of which the fastest counts: other programs disturb the others
# What one image of 512 px costs in a training step, in products of the size above: measured on two cores of a Xeon with
# the network of `recipes.share_kernels`.
PRODUCTS_PER_IMAGE = 20.0
ACCELERATED = 0.004  # s an image of 512 px; no GPU is so slow
START_SECONDS = 25.0  # importing, looking at the data, measuring latency, the report
STAGE_SECONDS = 20.0  # compiling a stage's steps and evaluations on a machine of the speed below
REFERENCE = 0.0035  # s a product


class Machine(NamedTuple):
    """The machine that computes.

    Attributes:
        device: its name.
        cores: that this process may use.
        accelerated: a GPU or TPU computes.
        image_seconds: that a training step takes for an image of 512 px.
        start_seconds: of a run that are no training.
        stage_seconds: of a stage that are no training.
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
    """Looks at the machine; takes a fraction of a second once JAX is imported."""
    import jax

    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    accelerated = device.platform != "cpu"
    seconds = _product_seconds()
    slower = max(1.0, seconds / REFERENCE)
    return Machine(
        device=device.device_kind,
        cores=cores,
        accelerated=accelerated,
        image_seconds=ACCELERATED if accelerated else PRODUCTS_PER_IMAGE * seconds,
        start_seconds=START_SECONDS * slower,
        stage_seconds=STAGE_SECONDS * slower,
    )


def _product_seconds() -> float:
    matrix = np.random.default_rng(0).random((SIDE, SIDE), np.float32)
    durations, ends = [], time.perf_counter() + TIMED_SECONDS
    while not durations or time.perf_counter() < ends:
        start_time = time.perf_counter()
        np.matmul(matrix, matrix)
        durations.append(time.perf_counter() - start_time)
    return min(durations)
