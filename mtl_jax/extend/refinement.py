"""More data for classes that a task knows: a new version that stays only where no task has fallen too far."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl_jax.errors import UserError
from mtl_jax.evaluation.contract import ROUNDING_PERCENT, relative_drop_percent
from mtl_jax.evaluation.contract_table import figure
from mtl_jax.workdir import files, lineage

REFUSED = "refused"  # folder of the stage of a version that did not stay


def require_known(name: str, before: Mapping[str, Any], page_task: Mapping[str, Any], *, location: str) -> None:
    """Checks that a page has more data for what a task knows, and nothing else.

    Args:
        name: of the task.
        before: its settings in the parent.
        page_task: those of the page.
        location: the parent, for errors.

    Raises:
        UserError: a class is new, or the kind is another.
    """
    old_classes, page_classes = tuple(before.get("classes") or ()), tuple(page_task.get("classes") or ())
    if unknown := [class_name for class_name in page_classes if class_name not in old_classes]:
        raise UserError(
            f"task {name}: expected classes of {location} ({', '.join(map(str, old_classes))}), found {unknown[0]!r}; "
            "leave --refine out to add classes"
        )
    if page_task.get("kind") != before.get("kind"):
        raise UserError(
            f"task {name} of {location} is a {before.get('kind')} task, and the new data is for "
            f"{page_task.get('kind')}; give data of its kind"
        )


def fallen(contract: Mapping[str, Any], before: Mapping[str, Mapping[str, float]], *, limit: float) -> str:
    """Returns in words which tasks have fallen by more than a bound; nothing where none has.

    Args:
        contract: of the new version.
        before: task -> figures of the parent.
        limit: percent.
    """
    messages = []
    for name, entry in contract["tasks"].items():
        was, final_value = before.get(name, {}).get(entry["metric"]), entry["final"]
        if was is None:  # not measured before, so that nothing is lost
            continue
        drop = relative_drop_percent(was, final_value, entry["higher_is_better"])
        if final_value is None or (drop is not None and drop > limit + ROUNDING_PERCENT):
            messages.append(f"{name} {entry['metric']} from {figure(was)} to {figure(final_value)}")
    return ", ".join(messages)


def set_aside(workdir: Path, parent: Path, contract: dict[str, Any], words: str, *, limit: float) -> dict[str, Any]:
    """Takes a version back: its stage goes to the folder "refused", so that the work directory's last is the parent's.

    Args:
        workdir: of the new version.
        parent: its checkpoint.
        contract: of the new version.
        words: from `fallen`.
        limit: percent.

    Returns:
        The contract, which says so under "refused".
    """
    sentence = f"not kept, as more than {limit:g} % were lost ({words}); {parent} stays as it is"
    history = lineage.read(workdir) or {}
    for stage in (workdir / "checkpoints").iterdir():
        if stage.name.partition("-")[2] in history["versions"][-1]["stages"]:
            (workdir / REFUSED).mkdir(exist_ok=True)
            stage.replace(workdir / REFUSED / stage.name)
    files.write_json(workdir / lineage.FILE_NAME, {**history, REFUSED: sentence})
    contract = {**contract, "passed": False, REFUSED: sentence}
    files.write_json(workdir / "contract.json", contract)
    return contract
