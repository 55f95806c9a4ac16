"""Kinds of tasks, and the tasks of a configuration built from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from mtl_jax.config.checks import among, check_arguments
from mtl_jax.errors import UserError
from mtl_jax.tasks import classification, depth, detection, multi_label, regression, segmentation
from mtl_jax.tasks.base import Task

KINDS: dict[str, Callable[..., Task]] = {
    "segmentation": segmentation.make,
    "detection": detection.make,
    "classification": classification.make,
    "multi_label": multi_label.make,
    "regression": regression.make,
    "depth": depth.make,
}
# What people read for a figure's name, in every table, report and comparison.
TITLES: dict[str, str] = {
    **segmentation.TITLES,
    **detection.TITLES,
    **classification.TITLES,
    **multi_label.TITLES,
    **regression.TITLES,
    **depth.TITLES,
}


def title(figure: str) -> str:
    """Returns what people read for a figure's name; "iou/cat" is "IoU cat", and an unknown one stays as it is."""
    name, slash, of = figure.partition("/")
    return f"IoU {of}" if slash and name == "iou" else TITLES.get(figure, figure)


def build(tasks_config: Mapping[str, Mapping[str, Any]]) -> dict[str, Task]:
    """Builds the tasks of a configuration, in its order.

    Args:
        tasks_config: by task name: "kind", one of `KINDS`, and keyword arguments of that kind's `make`.

    Raises:
        UserError: a kind or an argument is unknown, or an argument is missing or outside its range.
    """
    return {name: _build_one(name, section) for name, section in tasks_config.items()}


def _build_one(name: str, section: Mapping[str, Any]) -> Task:
    where = f"config.tasks.{name}"
    kind: Any = section.get("kind")
    among(f"{where}.kind", kind, KINDS)
    options = {key: value for key, value in section.items() if key != "kind"}
    check_arguments(where, options, KINDS[kind], own=("name",))
    for key, value in options.items():
        _check_numbers(f"{where}.{key}", value)
    try:
        return KINDS[kind](name, **options)
    except TypeError as error:  # a word where a number belongs
        raise UserError(f"{where} has values of other types than its settings take ({error}); correct them") from error


def _check_numbers(where: str, value: Any) -> None:
    """Refuses numbers that no loss can be made of: beyond all numbers, or of a sign that turns it round."""
    found = [each for each in (value if isinstance(value, list | tuple) else [value]) if isinstance(each, int | float)]
    endless = [each for each in found if not math.isfinite(each)]
    if endless:
        raise UserError(f"{where} has {endless[0]}; expected finite numbers")
    if where.endswith(("_weight", "_weights", "_exponent")) and min(found, default=0) < 0:
        raise UserError(f"{where} is {value}; expected at least 0")
    if where.endswith("_weights") and found and not any(found):
        raise UserError(f"{where} is {value}; expected one above 0")
    if where.endswith("_temperature") and min(found, default=1) <= 0:
        raise UserError(f"{where} is {value}; expected more than 0")
    if where.endswith(".strides") and len(set(found)) < len(found):
        raise UserError(f"{where} is {value}; expected each level once")
