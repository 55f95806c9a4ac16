#!/usr/bin/env python3
"""Draws docs/quickstart.png: predictions of the quickstart's one network for validation scenes, and the run's contract.

mtl-jax train --config configs/quickstart.py --workdir runs/quickstart
python scripts/quickstart_picture.py runs/quickstart docs/quickstart.png
"""

import io
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image
from rich.console import Console

from mtl_jax import predict as predict_lib
from mtl_jax.data.sources.digits import DigitScenes
from mtl_jax.evaluation import contract_table

SIZE_PX = 96  # of a scene, as the page trains on
SCENES = 4  # in a row
COLOURS = [f"C{digit}" for digit in range(10)]
MASK_OPACITY = 0.75
INCHES, DPI = (12.6, 4.25), 130
TABLE_COLUMNS = 78  # characters
TERMINAL = {"background": "#101418", "text": "#d5dae0", "good": "#5fd08a", "bad": "#ff7b7b", "quiet": "#8a939c"}
CHARACTER = 0.602  # width of the monospaced font, in units of its size


def main(arguments: Sequence[str]) -> int:
    """Draws a run's picture; arguments are its work directory and the file to write."""
    workdir, path = map(Path, arguments)
    contract = json.loads((workdir / "contract.json").read_text())
    several = list(predicted(workdir, "detection"))
    single = list(predicted(workdir, "classification"))
    figure = Figure(figsize=INCHES, dpi=DPI)
    rows = (("masks", several, draw_mask), ("boxes", several, draw_boxes), ("class", single, draw_class))
    for row, (name, scenes, draw) in enumerate(rows):
        for column, scene in enumerate(scenes):
            axes = figure.add_axes((0.035 + 0.1 * column, 0.69 - 0.325 * row, 0.097, 0.29))
            axes.imshow(scene.image, interpolation="nearest")
            axes.set(xticks=[], yticks=[], xlim=(-0.5, SIZE_PX - 0.5), ylim=(SIZE_PX - 0.5, -0.5))
            draw(axes, scene.outputs)
            if column == 0:
                axes.set_ylabel(name, fontsize=11)
    draw_terminal(figure, contract)
    path.write_bytes(png(figure))
    return 0


def predicted(workdir: Path, labels: str) -> Iterator[Any]:
    """Yields predictions for the first validation scenes of a kind: the boxes that the run's own thresholds keep."""
    scenes = DigitScenes(split="val", labels=labels, size=SIZE_PX)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{index}.png") for index in range(SCENES)]
        for index, path in enumerate(paths):
            Image.fromarray(scenes[index]["image"]).save(path)
        yield from predict_lib.predict(workdir, paths)


def draw_mask(axes: Axes, predictions: dict[str, Any]) -> None:
    """Colours every digit's pixels."""
    mask = predictions["seg"]["mask"]
    colours = np.array([(0.0, 0.0, 0.0, 0.0), *((*to_rgb(colour), MASK_OPACITY) for colour in COLOURS)])
    axes.imshow(colours[mask], interpolation="nearest")


def draw_boxes(axes: Axes, predictions: dict[str, Any]) -> None:
    """Frames every digit, with its class."""
    for (left, top, right, bottom), label in zip(
        predictions["det"]["boxes_xyxy"], predictions["det"]["label"], strict=True
    ):
        colour = COLOURS[int(label)]
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.6))
        style: dict[str, Any] = {"facecolor": colour, "edgecolor": "none", "pad": 1.2}
        side = "bottom" if top > 12 else "top"
        axes.text(left, top, label, color="white", fontsize=7.5, bbox=style, clip_on=True, verticalalignment=side)


def draw_class(axes: Axes, predictions: dict[str, Any]) -> None:
    """Writes the class below the scene, with its probability."""
    label = predictions["cls"]["label"]
    axes.set_xlabel(f"{label}  ({predictions['cls']['probability'][label]:.0%})", fontsize=9, labelpad=2)


def draw_terminal(figure: Figure, contract: dict[str, Any]) -> None:
    """Draws the contract as the terminal shows it."""
    axes = figure.add_axes((0.45, 0.03, 0.54, 0.95))
    width, height = INCHES[0] * 0.54 * 72, INCHES[1] * 0.95 * 72  # points
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    style = "round,pad=0,rounding_size=7"
    axes.add_patch(FancyBboxPatch((0, 0), width, height, boxstyle=style, color=TERMINAL["background"], clip_on=False))
    lines = [[("$ mtl-jax train --config configs/quickstart.py", "quiet")], [], *table_lines(contract)]
    size = min((width - 24) / (TABLE_COLUMNS * CHARACTER), (height - 24) / (len(lines) * 1.35))
    for number, line in enumerate(lines):
        column = 0
        for text, colour in line:
            place = 12 + column * CHARACTER * size, 12 + number * 1.35 * size
            axes.text(*place, text, color=TERMINAL[colour], size=size, family="monospace", va="top", parse_math=False)
            column += len(text)


def table_lines(contract: dict[str, Any]) -> list[list[tuple[str, str]]]:
    """The table's lines, each as texts with the name of their colour."""
    console = Console(width=TABLE_COLUMNS, file=io.StringIO(), color_system="truecolor", force_terminal=True)
    lines = console.render_lines(contract_table.table(contract), pad=False)
    return [[(segment.text, colour_of(str(segment.style))) for segment in line] for line in lines]


def colour_of(style: str) -> str:
    """The name of a colour of `TERMINAL` for a style of rich."""
    if "green" in style:
        return "good"
    return "bad" if "red" in style else "text"


def png(figure: Figure) -> bytes:
    """The picture with a palette, which takes a third of the bytes."""
    buffer, small = io.BytesIO(), io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    picture = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(small, format="png", optimize=True)
    return small.getvalue()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
