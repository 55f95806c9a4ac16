"""How far an exported file is from the network that it came from, and how fast each of them is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mtl_jax.export.formats import Run
from mtl_jax.export.network import OUTPUTS, Form, answers, decoded
from mtl_jax.workdir.trained import Trained

# Of the largest magnitude of each output, by what the network computes in: the numbers of bfloat16 lie 8e-3 apart.
MAX_DIFFERENCE = {"float32": 1e-3, "bfloat16": 5e-2}


def reference(network: Trained, form: Form | None = None) -> tuple[Run, Run]:
    """Returns the network itself, jitted, as users of the package run it: its answers, and its outputs too."""
    plain, full = (jax.jit(answers(network, form, with_outputs=with_outputs)) for with_outputs in (False, True))
    return (lambda pixels: jax.device_get(plain(pixels))), (lambda pixels: jax.device_get(full(pixels)))


def differences(
    network: Trained, expected: Run, found: Run, batches: Sequence[np.ndarray], *, decode: str = "all"
) -> dict[str, float]:
    """Returns the largest difference of each output, relative to its largest magnitude.

    Outputs are compared with the network's own. What is decoded from them is compared with what the network's decoding
    makes of the file's outputs: an index may jump where two scores are equal to the last digit but one.

    Args:
        network: the exported one.
        expected: the network, with its outputs.
        found: the file, with its outputs.
        batches: images, letterboxed.
        decode: how far the file decodes, one of `network.DECODE`.
    """
    decoder = jax.jit(lambda outputs: decoded(network.tasks, outputs, decode))
    largest: dict[str, float] = {}
    difference: dict[str, float] = {}
    for pixels in batches:
        expected_outputs, file_outputs = expected(pixels), found(pixels)
        outputs = {name: file_outputs[f"{name}/{OUTPUTS}"] for name in network.names}
        expected_outputs |= jax.device_get(decoder(outputs))
        for name, value in expected_outputs.items():
            value, file_value = np.asarray(value, np.float64), np.asarray(file_outputs[name], np.float64)
            largest[name] = max(largest.get(name, 0.0), float(np.abs(value).max()))
            difference[name] = max(difference.get(name, 0.0), float(np.abs(value - file_value).max()))
    return {name: difference[name] / (largest[name] or 1.0) for name in difference}


def latencies_ms(runs: Mapping[str, Run], pixels: np.ndarray, *, repeats: int) -> dict[str, float]:
    """Returns the median time of each, in ms, after a first call; they take turns, so that a busy machine is fair.

    Args:
        runs: by name.
        pixels: one batch.
        repeats: timed calls of each.
    """
    seconds: dict[str, list[Any]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run(pixels)
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * float(np.median(times)) for name, times in seconds.items()}
