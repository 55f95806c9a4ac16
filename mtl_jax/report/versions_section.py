"""The report's section on the versions of a run that grew from others: what each added, and every task over all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.evaluation import contract_table
from mtl_jax.evaluation.contract import addition, task_histories
from mtl_jax.report import html_page
from mtl_jax.workdir import lineage

COLUMNS = ("version", "work directory", "stages added", "classes added", "old tasks")


def section(contract: Mapping[str, Any] | None) -> str:
    """Returns the section; nothing for a run that grew from no other.

    Args:
        contract: the tree of `contract.json`.
    """
    growth = (contract or {}).get("lineage")
    if not contract or not growth:
        return ""
    versions, tasks = growth["versions"], contract["tasks"]
    histories, rows, stage_count, known_classes = _histories(contract), [], 0, {}
    for number, version in enumerate(versions, start=1):
        stage_count += len(version["stages"])
        values = [history[stage_count - 1] for history in histories.values()]
        rows.append((*_described(number, version, known_classes), *map(_figure, values)))
        known_classes |= version["classes"]
    lead = f"Grown from {growth['parent']}, digest {growth['digest']}. Figures are of the end of each version."
    if changes := {task: entry["largest_output_change"] for task, entry in tasks.items() if _is_old(entry)}:
        lead += f" Largest change of an output since: {', '.join(f'{task} {x:g}' for task, x in changes.items())}."
    numbers = range(len(COLUMNS), len(COLUMNS) + len(histories))
    return html_page.section("Versions", html_page.table((*COLUMNS, *histories), rows, numbers=numbers), lead=lead)


def _histories(contract: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """Metrics of every task, and of its later classes, after each stage."""
    by_task: dict[str, list[float | None]] = {}
    added_stages = [{"metrics": stage.get("added", {})} for stage in contract["stages"]]
    for task, entry in contract["tasks"].items():
        judged = entry["metric"], entry["higher_is_better"]
        by_task |= task_histories(contract["stages"], {task: judged})
        for stage in entry.get("added", {}):
            name = addition(task, stage)
            by_task |= task_histories(added_stages, {name: judged})
    return by_task


def _described(number: int, version: Mapping[str, Any], known_classes: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    texts = []
    for task, classes in version["classes"].items():
        new_classes = [name for name in classes if name not in known_classes.get(task, ())]
        if task not in known_classes or new_classes:
            texts.append(f"{task}: {len(new_classes)}" if new_classes else task)
    if edits := lineage.edits(version):
        texts = edits
    keep_text = version.get("keep", "-")
    return f"{number}", Path(version["workdir"]).name, ", ".join(version["stages"]), ", ".join(texts), keep_text


def _figure(value: float | None) -> str:
    return "·" if value is None else contract_table.figure(value)


def _is_old(entry: Mapping[str, Any]) -> bool:
    return "largest_output_change" in entry
