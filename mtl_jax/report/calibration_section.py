"""The report's section on calibration: calibration error of the scores, and the thresholds for predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtl_jax.evaluation.contract_table import figure
from mtl_jax.report import html_page

COLUMNS = ("task", "temperature", "calibration error before", "after", "F1 before", "after", "least score by class")
NUMBERS = range(1, 6)
MOST_CLASSES = 12  # whose thresholds are listed


def section(contract: Mapping[str, Any] | None) -> str:
    """Returns the section; nothing for a run that held no images out.

    Args:
        contract: the tree of `contract.json`.
    """
    figures = (contract or {}).get("calibration")
    if not figures:
        return ""
    lead = (
        "Temperatures and thresholds are chosen on training images that no step has seen, the figures are of "
        "validation images. The calibration error is the expected one, over 15 bins of confidence."
    )
    return html_page.section("Scores", html_page.table(COLUMNS, rows(figures), numbers=NUMBERS), lead=lead)


def rows(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Returns a row of `COLUMNS` for each task of a contract's "calibration"."""
    names = ("temperature", "calibration_error_before", "calibration_error", "f1_before", "f1")
    return [
        (task, *(_figure(task_figures.get(name)) for name in names), _levels(task_figures.get("thresholds", {})))
        for task, task_figures in figures.items()
    ]


def _figure(value: float | None) -> str:
    return "-" if value is None else figure(value)


def _levels(thresholds: Mapping[str, float]) -> str:
    level_texts = [f"{name} {value:g}" for name, value in list(thresholds.items())[:MOST_CLASSES]]
    remainder = len(thresholds) - len(level_texts)
    return ", ".join(level_texts + ([f"{remainder} more"] if remainder else [])) or "-"
