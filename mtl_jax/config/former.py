"""Names that settings had in earlier versions, in pages and saved runs: read as what they are called now."""

from __future__ import annotations

import fnmatch
from typing import Any

from mtl_jax.errors import UserError

# Settings that an earlier version had, with what their value looks like: command lines may still give them.
SETTINGS: dict[tuple[str, ...], Any] = {("model", "batch_norm_per_task"): False}
LATER_BRANCH = "reads_backbone"  # of a detector whose later classes had layers that there are no more
STRIDES = {f"stage_{number}": 2 ** (number + 1) for number in range(5)}  # px, at which parts of the backbone end


def renamed(section: Any) -> Any:
    """Returns settings of any version under the names of this one; what is none is left to be refused.

    Args:
        section: of a whole run, as plain values.

    Raises:
        UserError: a detector got classes in a way that this version does not compute.
    """
    if not isinstance(section, dict):
        return section
    _refuse_former_branches(section.get("tasks"))
    changes = {"model": renamed_model(section["model"])} if "model" in section else {}
    if isinstance(stages := section.get("stages"), dict):
        changes["stages"] = {name: renamed_stage(stage) for name, stage in stages.items()}
    return section | changes


def _refuse_former_branches(tasks: Any) -> None:
    for name, task in tasks.items() if isinstance(tasks, dict) else ():
        if isinstance(task, dict) and LATER_BRANCH in task:
            raise UserError(
                f"config.tasks.{name}: expected later classes with a head of their own, found those of an earlier "
                f"version ({LATER_BRANCH}); extend the run again from which this one grew"
            )


def renamed_stage(section: Any) -> Any:
    """Returns the settings of a stage under the names of this version.

    Args:
        section: as plain values; parts of the backbone may have a number instead of a stride, and what is frozen its
            epochs in its text, "backbone/stage_0@:5".
    """
    if not isinstance(section, dict):
        return section
    changes: dict[str, Any] = {}
    freeze, rates = section.get("freeze"), section.get("rates")
    if isinstance(freeze, tuple | list) and any(
        isinstance(old_pattern, str) and _is_former(old_pattern) for old_pattern in freeze
    ):
        texts = [word.strip() for old_pattern in freeze for word in str(old_pattern).split(",") if word.strip()]
        changes["freeze"] = {pattern: epochs for text in texts for pattern, epochs in _frozen(text).items()}
    elif isinstance(freeze, dict):
        changes["freeze"] = {
            old_pattern: epochs for pattern, epochs in freeze.items() for old_pattern in renamed_pattern(pattern)
        }
    if isinstance(rates, dict):
        changes["rates"] = {
            old_pattern: rate for pattern, rate in rates.items() for old_pattern in renamed_pattern(pattern)
        }
    return section | changes


def _is_former(text: str) -> bool:
    return "@" in text or "/stage_" in text


def renamed_pattern(pattern: str) -> list[str]:
    """Returns a pattern with parts of the backbone by stride: "backbone/stage_[01]" is two, of 2 and of 4 px."""
    names = str(pattern).split("/")
    for position, name in enumerate(names):
        strides = [stride for stage, stride in STRIDES.items() if fnmatch.fnmatchcase(stage, name)]
        if name.startswith("stage_") and strides:
            return ["/".join([*names[:position], f"stride_{stride}", *names[position + 1 :]]) for stride in strides]
    return [str(pattern)]


def _frozen(text: str) -> dict[str, Any]:
    """Reads "pattern", "pattern@start:stop", "pattern@start:" or "pattern@:stop", in epochs."""
    pattern, separator, epochs = text.partition("@")
    start, _, stop = epochs.partition(":")
    try:
        span = (float(start or 0), float(stop) if stop else None) if separator else None
    except ValueError:
        span = epochs  # which is refused where it is read
    return dict.fromkeys(renamed_pattern(pattern), span)


def renamed_model(section: Any) -> Any:
    """Returns the settings of a network under the names of this version.

    Args:
        section: as plain values.
    """
    if not isinstance(section, dict):
        return section
    until, sharing = section.get("share_until"), section.get("sharing")
    changes: dict[str, Any] = {"share_until": STRIDES[until]} if isinstance(until, str) and until in STRIDES else {}
    if sharing == "adapters":
        changes["sharing"] = "series_adapters"
    by_task, above = section.get("batch_norm_per_task"), section.get("norms_from", 0)
    if by_task is False or (by_task is True and above in (0, 1)):  # else it is refused where it is read
        section = {name: value for name, value in section.items() if name != "batch_norm_per_task"}
        changes["norms_from"] = 1 if by_task else above
    return {**section, **changes}
