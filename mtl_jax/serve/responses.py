"""JSON responses: predictions by task, with maps as PNG files in data URLs."""

from __future__ import annotations

import base64
import time
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mtl_jax.data.pixel_labels import png
from mtl_jax.report import pictures
from mtl_jax.serve.inference import InferenceService, Result


def to_json(
    service: InferenceService,
    image: UInt8[np.ndarray, "height width 3"],
    result: Result,
    *,
    threshold: float | None,
    overlay: bool,
    shades: bool,
    ms: dict[str, float],
) -> dict[str, Any]:
    """Returns the body of a response.

    Args:
        service: service that computed the result.
        image: RGB image.
        result: predictions for the image.
        threshold: lowest score of boxes and tags; None uses the calibrated ones.
        overlay: include the image with its predictions drawn over it, as "overlay".
        shades: include depths as 8-bit images, dark is near, as "shade".
        ms: durations measured so far.
    """
    start, outputs = time.perf_counter(), {}
    requested = {name: task for name, task in service.tasks.items() if name in result.predictions}
    for name, task in requested.items():
        output = task.to_json(task.at_original(result.predictions[name], result.geometries[name]), threshold)
        maps = {field: value for field, value in output.items() if isinstance(value, np.ndarray)}
        if shades and "depth_mm" in maps:
            maps["shade"] = _shade(maps["depth_mm"])
        outputs[name] = {**output, **{field: _url(png(value)) for field, value in maps.items()}}
    height, width = image.shape[:2]
    body: dict[str, Any] = {"width": width, "height": height, "tasks": outputs}
    if overlay:
        body["overlay"] = _url(
            pictures.overlay(requested, image, result.predictions, result.geometries, threshold=threshold)
        )
    milliseconds = {**ms, **result.ms, "encode": 1e3 * (time.perf_counter() - start)}
    return body | {"ms": {name: round(value, 2) for name, value in milliseconds.items()}}


def _shade(depth_mm: np.ndarray) -> UInt8[np.ndarray, "height width"]:
    """Scales depths from the nearest point to the farthest to 0 to 255."""
    depth = depth_mm.astype(np.float32)
    near, far = depth.min(), depth.max()
    return np.rint(255 * (depth - near) / max(far - near, 1.0)).astype(np.uint8)


def _url(file: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"
