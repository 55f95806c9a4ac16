"""Refinement: more data for existing classes; the new version is kept only if no task drops too much."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl_jax.errors import UserError
from mtl_jax.evaluation.contract import ROUNDING_PERCENT, relative_drop_percent
from mtl_jax.evaluation.contract_table import figure, task_entries
from mtl_jax.workdir import files, lineage

REFUSED = "refused"  # folder of the stage of a rejected version


def require_existing_classes(
    name: str, parent_task: Mapping[str, Any], page_task: Mapping[str, Any], *, location: str
) -> None:
    """Checks that a page has data for existing classes of a task only.

    Args:
        name: name of the task.
        parent_task: its settings in the parent.
        page_task: its settings in the page.
        location: path of the parent, for errors.

    Raises:
        UserError: a class is new, or the kind differs.
    """
    old_classes, page_classes = tuple(parent_task.get("classes") or ()), tuple(page_task.get("classes") or ())
    if unknown := [class_name for class_name in page_classes if class_name not in old_classes]:
        raise UserError(
            f"task {name}: expected classes of {location} ({', '.join(map(str, old_classes))}), found {unknown[0]!r}; "
            "leave --refine out to add classes"
        )
    if page_task.get("kind") != parent_task.get("kind"):
        raise UserError(
            f"task {name} of {location} is a {parent_task.get('kind')} task, and the new data is for "
            f"{page_task.get('kind')}; give data of its kind"
        )


def describe_drops(
    contract: Mapping[str, Any], parent_metrics: Mapping[str, Mapping[str, float]], *, limit: float
) -> str:
    """Lists the tasks, and classes that a task got later, that drop by more than a limit; empty if none does.

    Args:
        contract: contract of the new version.
        parent_metrics: metrics of the parent, by task, and by `addition` of classes that a stage added.
        limit: largest drop in percent.
    """
    messages = []
    for name, entry in task_entries(contract).items():
        previous, final_value = parent_metrics.get(name, {}).get(entry["metric"]), entry["final"]
        if previous is None:  # not measured before
            continue
        drop = relative_drop_percent(previous, final_value, entry["higher_is_better"])
        if final_value is None or (drop is not None and drop > limit + ROUNDING_PERCENT):
            messages.append(f"{name} {entry['metric']} from {figure(previous)} to {figure(final_value)}")
    return ", ".join(messages)


def reject(workdir: Path, parent: Path, contract: dict[str, Any], drops: str, *, limit: float) -> dict[str, Any]:
    """Rejects a version: moves its stage to the folder "refused", so that the last stage is the parent's.

    Args:
        workdir: work directory of the new version.
        parent: checkpoint of the parent.
        contract: contract of the new version.
        drops: from `describe_drops`.
        limit: largest drop in percent.

    Returns:
        The contract, with the reason under "refused".
    """
    sentence = f"not kept, as more than {limit:g} % were lost ({drops}); {parent} stays as it is"
    history = lineage.read(workdir) or {}
    for stage in (workdir / "checkpoints").iterdir():
        if stage.name.partition("-")[2] in history["versions"][-1]["stages"]:
            (workdir / REFUSED).mkdir(exist_ok=True)
            stage.replace(workdir / REFUSED / stage.name)
    files.write_json(workdir / lineage.FILE_NAME, {**history, REFUSED: sentence})
    contract = {**contract, "passed": False, REFUSED: sentence}
    files.write_json(workdir / "contract.json", contract)
    return contract
