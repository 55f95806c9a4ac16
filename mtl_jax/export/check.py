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
FROM_0_TO_1 = ("/probability", "/score")  # predictions whose differences are absolute: all of them may be near 0
TIE = 1e-6  # difference of two scores, below which rounding decides which detection is first


def reference(network: Trained, form: Form | None = None) -> tuple[Run, Run]:
    """Returns the jitted network as two functions: of its predictions, and of its predictions and raw outputs."""
    predictions, all_outputs = (
        jax.jit(output_function(network, form, with_outputs=with_outputs)) for with_outputs in (False, True)
    )
    return (lambda pixels: jax.device_get(predictions(pixels))), (lambda pixels: jax.device_get(all_outputs(pixels)))


def differences(
    network: Trained, reference_run: Run, file_run: Run, batches: Sequence[np.ndarray], *, decode: str = "all"
) -> dict[str, float]:
    """Returns the largest difference of each output, relative to its largest magnitude; of indices the differing share.

    Probabilities and scores are compared with 1, which is their largest magnitude in other images.

    Raw outputs are compared with those of the network. Predictions are compared with the network's decoding of the
    file's raw outputs, because an index may change where two scores are nearly equal. Detections with nearly equal
    scores are compared in the order of the network.

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
        file_outputs = {**file_outputs, **_ties_in_order(expected_outputs, file_outputs)}
        for name, value in expected_outputs.items():
            value, file_value = np.asarray(value), np.asarray(file_outputs[name])
            if np.issubdtype(value.dtype, np.floating):
                least = 1.0 if name.endswith(FROM_0_TO_1) else 0.0
                largest[name] = max(largest.get(name, least), float(np.abs(value).max()))
                error = float(np.abs(value.astype(np.float64) - file_value).max())
            else:
                error = float((value != file_value).mean())
            difference[name] = max(difference.get(name, 0.0), error)
    return {name: difference[name] / (largest.get(name) or 1.0) for name in difference}


def _ties_in_order(expected: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the detections of a file, those with nearly equal scores in the order in which the network has them."""
    ordered: dict[str, np.ndarray] = {}
    for task in [name.removesuffix("/valid") for name in expected if name.endswith("/valid")]:
        keys = [key for key in expected if key.startswith(f"{task}/") and not key.endswith(f"/{OUTPUTS}")]
        compared = [f"{task}/{field}" for field in ("score", "label", "boxes_xyxy")]
        pairs = zip(*(expected[key] for key in compared), *(outputs[key] for key in compared), strict=True)
        order = np.array([_nearest_of_ties(image[:3], image[3:]) for image in pairs])
        ordered |= {key: np.asarray(outputs[key])[np.arange(len(order))[:, None], order] for key in keys}
    return ordered


def _nearest_of_ties(rows: Sequence[np.ndarray], file_rows: Sequence[np.ndarray]) -> list[int]:
    """Returns the row of a file for each row of the network, among those with nearly equal scores.

    Args:
        rows: score f32[n], label i32[n] and box f32[n, 4] of the detections in an image, best first.
        file_rows: the same of the file.
    """
    score, label, box = rows
    order: list[int] = []
    for ties in np.split(np.arange(len(score)), 1 + np.flatnonzero(score[:-1] - score[1:] > TIE)):
        free = ties.tolist()
        for row in ties:
            distances = np.abs(file_rows[2][free] - box[row]).max(axis=1)
            order.append(free.pop(np.lexsort([distances, file_rows[1][free] != label[row]])[0]))
    return order


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
