"""Kinds of tasks, and the tasks of a configuration built from them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from mtl_jax.config.checks import check_class_names, require_choice
from mtl_jax.config.section import read
from mtl_jax.tasks import later
from mtl_jax.tasks.base import Task
from mtl_jax.tasks.classification import Classification
from mtl_jax.tasks.depth import Depth
from mtl_jax.tasks.detection import Detection
from mtl_jax.tasks.later_detection import LaterDetection
from mtl_jax.tasks.multi_label import MultiLabel
from mtl_jax.tasks.regression import Regression
from mtl_jax.tasks.segmentation import Segmentation

KINDS: dict[str, type[Task]] = {
    "segmentation": Segmentation,
    "detection": Detection,
    "classification": Classification,
    "multi_label": MultiLabel,
    "regression": Regression,
    "depth": Depth,
}
LATER_KINDS: dict[str, type[Task]] = {  # whose classes can be changed after training
    "segmentation": later.LaterSegmentation,
    "detection": LaterDetection,
    "classification": later.LaterClassification,
    "multi_label": later.LaterMultiLabel,
}
# What people read for a figure's name, in every table, report and comparison.
TITLES: dict[str, str] = {figure: title for kind in KINDS.values() for figure, title in kind.titles.items()}


def title(figure: str) -> str:
    """Returns what people read for a figure's name; "iou/cat" is "IoU cat", and an unknown one stays as it is."""
    name, slash, of = figure.partition("/")
    return f"IoU {of}" if slash and name == "iou" else TITLES.get(figure, figure)


def build(tasks_config: Mapping[str, Mapping[str, Any]]) -> dict[str, Task]:
    """Builds the tasks of a configuration, in its order.

    Args:
        tasks_config: by task name: "kind", one of `KINDS`, and settings of that kind.

    Raises:
        UserError: a kind or a setting is unknown, or a setting is missing or outside its range.
    """
    return {name: _build_one(name, section) for name, section in tasks_config.items()}


def _build_one(name: str, section: Mapping[str, Any]) -> Task:
    location = f"config.tasks.{name}"
    kind: Any = section.get("kind")
    require_choice(f"{location}.kind", kind, KINDS)
    settings: dict[str, Any] = {"name": name}
    takes_classes = "classes" in inspect.signature(KINDS[kind]).parameters
    if takes_classes and "classes" in section:  # not read as other names, which a comma parts
        check_class_names(f"{location}.classes", section["classes"])
        settings["classes"] = tuple(section["classes"])
    options = {key: value for key, value in section.items() if key != "kind" and key not in settings}
    kinds = LATER_KINDS if kind in LATER_KINDS and any(name in options for name in later.SETTINGS) else KINDS
    return read(kinds[kind], options, location, **settings)
