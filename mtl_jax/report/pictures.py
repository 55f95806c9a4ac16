"""Pictures of what the network predicts, as PNG."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree, UInt8

from mtl_jax.data.warp import stretch, warp
from mtl_jax.evaluation.evaluate import Predict, example
from mtl_jax.tasks.base import Geometry, Task

FIGURE_INCHES = 3.2  # each side; with DPI, 320 px
DPI = 100.0
OVERLAY_PX = (640, 1600)  # least and most of an overlay's longer side: smaller ones leave no room for words
OVERLAY_INCHES = 5.0  # what that side measures, so that words take the same share of every overlay


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
    left, top = geometry.offset_x, geometry.offset_y

    def panel(axes: Any) -> None:
        axes.imshow(np.clip(image, 0.0, 1.0))
        axes.set_xlim(left - 0.5, left + geometry.width * geometry.scale_x - 0.5)
        axes.set_ylim(top + geometry.height * geometry.scale_y - 0.5, top - 0.5)
        task.draw(axes, prediction)

    return _png([panel], inches=(FIGURE_INCHES, FIGURE_INCHES), dpi=DPI)


def overlay(
    tasks: Mapping[str, Task],
    image: UInt8[np.ndarray, "height width 3"],
    predictions: Mapping[str, Mapping[str, np.ndarray]],
    geometries: Mapping[str, Geometry],
    *,
    threshold: float | None = None,
) -> bytes:
    """Returns an original image with what several tasks predict drawn over it, as a PNG file of about its size.

    Of several tasks with an answer for every pixel, the first shares a panel with all else, and each of the others
    has its own beside it.

    Args:
        tasks: by name.
        image: RGB.
        predictions: of each task, for the network's input.
        geometries: where the image went in that input.
        threshold: least score of what is drawn; each kind's own where None.
    """
    height, width = image.shape[:2]
    scale = float(np.clip(max(height, width), *OVERLAY_PX)) / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    shown = warp(image, stretch(height, width, size=size), size=size)

    def panel(axes: Any, names: Iterable[str]) -> None:
        axes.imshow(shown)
        axes.set(xlim=(-0.5, size[1] - 0.5), ylim=(size[0] - 0.5, -0.5))
        for name in names:
            placed = tasks[name].at_original(predictions[name], _resized(geometries[name], size))
            tasks[name].draw(axes, placed, threshold)
        axes.set_aspect("auto")  # a panel has the image's shape, but for a fraction of a pixel

    others = [name for name, task in tasks.items() if task.readout == "dense"][1:]
    groups = [[name for name in tasks if name not in others], *([name] for name in others)]
    dpi = max(size) / OVERLAY_INCHES
    panels = [functools.partial(panel, names=names) for names in groups]
    return _png(panels, inches=(size[1] / dpi, size[0] / dpi), dpi=dpi)


def _resized(geometry: Geometry, size: tuple[int, int]) -> Geometry:
    """Where an image went, seen from a copy of it of another size."""
    x, y = geometry.width / size[1], geometry.height / size[0]
    return geometry._replace(scale_x=geometry.scale_x * x, scale_y=geometry.scale_y * y, height=size[0], width=size[1])


def _png(panels: Sequence[Callable[[Any], None]], *, inches: tuple[float, float], dpi: float) -> bytes:
    """Draws panels side by side, each of a size."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # slow to import, and of no use to a training step

    with rc_context({"text.parse_math": False}):  # a name with a dollar sign is a name
        figure = Figure(figsize=(inches[0] * len(panels), inches[1]), dpi=dpi)
        for column, panel in enumerate(panels):
            axes = figure.add_axes((column / len(panels), 0.0, 1 / len(panels), 1.0))
            axes.axis("off")
            panel(axes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return buffer.getvalue()
