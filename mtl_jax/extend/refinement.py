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


def require_known(name: str, before: Mapping[str, Any], now: Mapping[str, Any], *, location: str) -> None:
    """Checks that a page has more data for what a task knows, and nothing else.

    Args:
        name: of the task.
        before: its settings in the parent.
        now: those of the page.
        location: the parent, for errors.

    Raises:
        UserError: a class is new, or the kind is another.
    """
    had, given = tuple(before.get("classes") or ()), tuple(now.get("classes") or ())
    if unknown := [each for each in given if each not in had]:
        raise UserError(
            f"class {unknown[0]} is not in task {name} of {location}, which knows {', '.join(map(str, had))}; leave "
            "--refine out to add classes"
        )
    if now.get("kind") != before.get("kind"):
        raise UserError(
            f"task {name} of {location} is a {before.get('kind')} task, and the new data is for {now.get('kind')}; "
            "give data of its kind"
        )


def fallen(contract: Mapping[str, Any], before: Mapping[str, Mapping[str, float]], *, limit: float) -> str:
    """Returns in words which tasks have fallen by more than a bound; nothing where none has.

    Args:
        contract: of the new version.
        before: task -> figures of the parent.
        limit: percent.
    """
    said = []
    for name, entry in contract["tasks"].items():
        was, now = before.get(name, {}).get(entry["metric"]), entry["final"]
        if was is None:  # not measured before, so that nothing is lost
            continue
        drop = relative_drop_percent(was, now, entry["higher_is_better"])
        if now is None or (drop is not None and drop > limit + ROUNDING_PERCENT):
            said.append(f"{name} {entry['metric']} from {figure(was)} to {figure(now)}")
    return ", ".join(said)


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
    found = lineage.read(workdir) or {}
    for stage in (workdir / "checkpoints").iterdir():
        if stage.name.partition("-")[2] in found["versions"][-1]["stages"]:
            (workdir / REFUSED).mkdir(exist_ok=True)
            stage.replace(workdir / REFUSED / stage.name)
    files.write_json(workdir / lineage.FILE_NAME, {**found, REFUSED: sentence})
    contract = {**contract, "passed": False, REFUSED: sentence}
    files.write_json(workdir / "contract.json", contract)
    return contract
