"""Names that settings had in earlier versions, in pages and saved runs: read as what they are called now."""

from __future__ import annotations

import fnmatch
from typing import Any

# Settings that an earlier version had, with what their value looks like: command lines may still give them.
SETTINGS: dict[tuple[str, ...], Any] = {("model", "batch_norm_per_task"): False}
STRIDES = {f"stage_{number}": 2 ** (number + 1) for number in range(5)}  # px, at which parts of the backbone end


def renamed(given: Any) -> Any:
    """Returns settings of any version under the names of this one; what is none is left to be refused.

    Args:
        given: of a whole run, as plain values.
    """
    if not isinstance(given, dict):
        return given
    changes = {"model": renamed_model(given["model"])} if "model" in given else {}
    if isinstance(stages := given.get("stages"), dict):
        changes["stages"] = {name: renamed_stage(stage) for name, stage in stages.items()}
    return given | changes


def renamed_stage(given: Any) -> Any:
    """Returns the settings of a stage under the names of this version.

    Args:
        given: as plain values; parts of the backbone may have a number instead of a stride, and what is frozen its
            epochs in its text, "backbone/stage_0@:5".
    """
    if not isinstance(given, dict):
        return given
    changes: dict[str, Any] = {}
    freeze, rates = given.get("freeze"), given.get("rates")
    if isinstance(freeze, tuple | list) and any(isinstance(each, str) and _is_former(each) for each in freeze):
        texts = [part.strip() for each in freeze for part in str(each).split(",") if part.strip()]
        changes["freeze"] = {pattern: epochs for text in texts for pattern, epochs in _frozen(text).items()}
    elif isinstance(freeze, dict):
        changes["freeze"] = {each: epochs for pattern, epochs in freeze.items() for each in renamed_pattern(pattern)}
    if isinstance(rates, dict):
        changes["rates"] = {each: rate for pattern, rate in rates.items() for each in renamed_pattern(pattern)}
    return given | changes


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
    pattern, at, epochs = text.partition("@")
    start, _, stop = epochs.partition(":")
    try:
        span = (float(start or 0), float(stop) if stop else None) if at else None
    except ValueError:
        span = epochs  # which is refused where it is read
    return dict.fromkeys(renamed_pattern(pattern), span)


def renamed_model(given: Any) -> Any:
    """Returns the settings of a network under the names of this version.

    Args:
        given: as plain values.
    """
    if not isinstance(given, dict):
        return given
    until, sharing = given.get("share_until"), given.get("sharing")
    changes: dict[str, Any] = {"share_until": STRIDES[until]} if isinstance(until, str) and until in STRIDES else {}
    if sharing == "adapters":
        changes["sharing"] = "series_adapters"
    by_task, above = given.get("batch_norm_per_task"), given.get("norms_from", 0)
    if by_task is False or (by_task is True and above in (0, 1)):  # else it is refused where it is read
        given = {name: value for name, value in given.items() if name != "batch_norm_per_task"}
        changes["norms_from"] = 1 if by_task else above
    return {**given, **changes}
