"""Captions of pictures: lines of tasks with one output for the whole image."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from jaxtyping import Float

CAPTION = "caption"  # how the one caption of a picture is found again


def write(axes: Any, text: str) -> None:
    """Writes lines into the image's upper left corner, below those of the tasks before."""
    for old_text in axes.texts:
        if old_text.get_gid() == CAPTION:
            old_text.set_text(f"{old_text.get_text()}\n{text}")
            return
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none"}
    axes.text(0.03, 0.97, text, transform=axes.transAxes, va="top", fontsize="small", bbox=box, gid=CAPTION, zorder=6)


def take(axes: Any) -> str:
    """Removes the caption from a picture and returns its lines; "" without one."""
    for text in axes.texts:
        if text.get_gid() == CAPTION:
            text.remove()
            return text.get_text()
    return ""


def ranked(
    classes: tuple[str, ...], probability: Float[np.ndarray, " classes"], output_classes: Collection[str]
) -> dict[str, float]:
    """Returns {class that may be predicted: its probability}, the most probable first."""
    values = np.asarray(probability, np.float64)
    order = [index for index in np.argsort(-values, kind="stable").tolist() if classes[index] in output_classes]
    return {classes[index]: round(float(values[index]), 6) for index in order}
