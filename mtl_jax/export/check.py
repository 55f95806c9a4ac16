"""Numerical differences between an exported file and its network, and latencies of both."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mtl_jax.export.formats import Run
from mtl_jax.export.network import OUTPUTS, Form, decode_outputs, output_function
from mtl_jax.workdir.trained import Trained

# Relative to the largest magnitude of each output, by compute type; the spacing of bfloat16 numbers is 8e-3.
MAX_DIFFERENCE = {"float32": 1e-3, "bfloat16": 5e-2}


def reference(network: Trained, form: Form | None = None) -> tuple[Run, Run]:
    """Returns the jitted network as two functions: of its predictions, and of its predictions and raw outputs."""
    predictions, all_outputs = (
        jax.jit(output_function(network, form, with_outputs=with_outputs)) for with_outputs in (False, True)
    )
    return (lambda pixels: jax.device_get(predictions(pixels))), (lambda pixels: jax.device_get(all_outputs(pixels)))


def differences(
    network: Trained, reference_run: Run, file_run: Run, batches: Sequence[np.ndarray], *, decode: str = "all"
) -> dict[str, float]:
    """Returns the largest difference of each output, relative to its largest magnitude.

    Raw outputs are compared with those of the network. Predictions are compared with the network's decoding of the
    file's raw outputs, because an index may change where two scores are nearly equal.

    Args:
        network: exported network.
        reference_run: function of the network, with raw outputs.
        file_run: function of the file, with raw outputs.
        batches: letterboxed images.
        decode: decoding of the file, one of `network.DECODE`.
    """
    decoder = jax.jit(lambda outputs: decode_outputs(network.tasks, outputs, decode))
    largest: dict[str, float] = {}
    difference: dict[str, float] = {}
    for pixels in batches:
        expected_outputs, file_outputs = reference_run(pixels), file_run(pixels)
        outputs = {name: file_outputs[f"{name}/{OUTPUTS}"] for name in network.names}
        expected_outputs |= jax.device_get(decoder(outputs))
        for name, value in expected_outputs.items():
            value, file_value = np.asarray(value, np.float64), np.asarray(file_outputs[name], np.float64)
            largest[name] = max(largest.get(name, 0.0), float(np.abs(value).max()))
            difference[name] = max(difference.get(name, 0.0), float(np.abs(value - file_value).max()))
    return {name: difference[name] / (largest[name] or 1.0) for name in difference}


def relative_error(expected: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> float:
    """Returns the largest root mean square error of a task's raw outputs in a file.

    The error of each channel is relative to its size: boxes in px do not outweigh scores.

    Args:
        expected: outputs of the network, raw ones among them, from `reference`.
        outputs: those of the file.
    """
    errors = []
    for name in [name for name in expected if name.endswith(f"/{OUTPUTS}")]:
        value, file_value = expected[name], outputs[name]
        axes = tuple(range(value.ndim - 1))
        errors.append((((file_value - value) ** 2).mean(axis=axes) / ((value**2).mean(axis=axes) + 1e-6)).mean())
    return float(np.sqrt(max(errors)))


def latencies_ms(runs: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, float]:
    """Returns median latencies in ms after a warm-up call; the programs alternate, so that noise affects all alike.

    Args:
        runs: functions by name, each of one batch.
        repeats: timed calls of each function.
    """
    seconds: dict[str, list[Any]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * float(np.median(times)) for name, times in seconds.items()}
