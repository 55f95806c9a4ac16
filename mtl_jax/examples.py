"""Pictures of what the network predicts, as PNG."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree

from mtl_jax.evaluate import Predict, example
from mtl_jax.tasks.base import Geometry, Task

FIGURE_INCHES = 3.2  # each side; with DPI, 320 px
DPI = 100


def render(
    predict: Predict,
    variables: PyTree,
    batches: Iterable[Any],
    tasks: Mapping[str, Task],
    *,
    count: int,
) -> dict[str, list[bytes]]:
    """Draws the predictions for the first images of a validation stream.

    Args:
        predict: from `evaluate.make_predict`.
        variables: of the network.
        batches: `data.pipeline.EvalBatch`es.
        tasks: those that the stream labels.
        count: images per task.

    Returns:
        Task -> PNG files.
    """
    pictures: dict[str, list[bytes]] = {name: [] for name in tasks}
    seen = 0
    for batch in batches:
        if seen >= count or not tasks:
            break
        predictions = jax.device_get(predict(variables, batch.image, names=tuple(tasks)))
        for index in range(min(len(batch.ids), count - seen)):
            for name, task in tasks.items():
                picture = draw(
                    task, np.asarray(batch.image[index]), example(predictions[name], index), batch.geometries[index]
                )
                pictures[name].append(picture)
        seen += len(batch.ids)
    return pictures


def draw(
    task: Task, image: Float[np.ndarray, "h w 3"], prediction: Mapping[str, np.ndarray], geometry: Geometry
) -> bytes:
    """Returns one image, without the padding around it, with one task's prediction drawn over it, as a PNG file."""
    from matplotlib.figure import Figure  # slow to import, and of no use to a training step

    figure = Figure(figsize=(FIGURE_INCHES, FIGURE_INCHES), dpi=DPI)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.imshow(np.clip(image, 0.0, 1.0))
    axes.axis("off")
    task.draw(axes, prediction)
    left, top = geometry.offset_x, geometry.offset_y
    axes.set_xlim(left - 0.5, left + geometry.width * geometry.scale_x - 0.5)
    axes.set_ylim(top + geometry.height * geometry.scale_y - 0.5, top - 0.5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
