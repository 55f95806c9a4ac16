"""Table of the datasets and of the settings chosen for them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

from mtl_jax.own_data.choices import Choice
from mtl_jax.own_data.summary import DatasetSummary, decile_summary

SHOWN_CLASSES = 4
LOG_WIDTH = 160  # characters, without a terminal


def show(datasets: Sequence[DatasetSummary], choices: Sequence[Choice] = ()) -> None:
    """Prints a table of the datasets, with their training settings if chosen."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        "task", "labels", "training + validation", "images, px", "holds", *(["trained at"] if choices else [])
    )
    choice_texts = [training(choice) for choice in choices] or [""] * len(datasets)
    for dataset, training_text in zip(datasets, choice_texts, strict=True):
        row = [
            dataset.request.name,
            f"{dataset.request.kind} ({dataset.format})",
            images(dataset),
            sizes(dataset),
            holds(dataset),
        ]
        table.add_row(*map(escape, [*row, *([training_text] if choices else [])]))
    Console(width=None if sys.stdout.isatty() else LOG_WIDTH).print(table)


def images(dataset: DatasetSummary) -> str:
    """Describes the numbers of training and validation images, and the split."""
    return f"{dataset.train} + {dataset.val}, {dataset.splits}"


def sizes(dataset: DatasetSummary) -> str:
    """Describes the median and range of image sizes."""
    width, height = ([size[k] for size in dataset.sizes] for k in (0, 1))
    middle = f"{median(width):g} x {median(height):g}"
    smallest, largest = f"{min(width)} x {min(height)}", f"{max(width)} x {max(height)}"
    return middle if smallest == largest else f"{middle} ({smallest} to {largest})"


def holds(dataset: DatasetSummary) -> str:
    """Describes the training labels."""
    if not dataset.classes:
        return f"around {dataset.center:.4g}, by {dataset.scale:.3g}"
    names = ", ".join(dataset.classes[:SHOWN_CLASSES])
    remainder = len(dataset.classes) - SHOWN_CLASSES
    text = f"{len(dataset.classes)} class{'es' * (len(dataset.classes) > 1)}: {names}" + (
        f" and {remainder} more" if remainder > 0 else ""
    )
    if dataset.box_shares:
        low, middle, high = (round(share * dataset.long_side) for share in decile_summary(dataset.box_shares))
        text += f"; {len(dataset.box_shares)} boxes, sides {low} to {high} px (median {middle})"
    return text


def training(choice: Choice) -> str:
    """Describes the training settings of a task."""
    crops = f" ({choice.train_image_size} px crops)" if choice.train_image_size != choice.image_size else ""
    text = f"{choice.image_size} px{crops}, {choice.epochs:g} epochs of batches of {choice.batch_size}"
    strides: Any = choice.task.get("strides")
    return text + (f", strides {', '.join(map(str, strides))}" if strides else "")
