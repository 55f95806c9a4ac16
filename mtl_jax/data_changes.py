"""What of a run's data is other than when its stages were trained and measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Digests = Mapping[str, Mapping[str, Mapping[str, Any]]]  # stream -> split -> "images" and "digest"


def others(then: Digests, now: Digests, split: str, streams: Iterable[str] | None = None) -> dict[str, str]:
    """Returns the streams whose split is another than it was, each with what changed of it, in words.

    Args:
        then: what a checkpoint keeps; streams that it knows nothing of count as unchanged.
        now: the same of today.
        split: "train" or "val".
        streams: the ones to compare; all of today's by default.
    """
    changed = {}
    for stream in now if streams is None else streams:
        old, new = then.get(stream, {}).get(split), now.get(stream, {}).get(split)
        if old and new and old["digest"] != new["digest"]:
            same = old["images"] == new["images"]
            counts = f"{new['images']}, of which some differ" if same else f"{old['images']} then, {new['images']} now"
            changed[stream] = f"stream {stream}: {counts}"
    return changed


def trained_on_others(
    stages: Sequence[Mapping[str, Any]], streams: Mapping[str, Sequence[str]], now: Digests
) -> list[str]:
    """Returns one sentence about each finished stage that was trained on other images than are there now.

    Args:
        stages: finished, each with its name and the "data" that it saw.
        streams: stage -> what it trains on.
        now: today's digests.
    """
    said = []
    for stage in stages:
        changed = others(stage.get("data", {}), now, "train", streams[stage["name"]])
        if changed:
            said.append(
                f"stage {stage['name']} was trained on other images than are there now ({'; '.join(changed.values())})"
            )
    return said


def measured_on_others(stages: Sequence[Mapping[str, Any]], now: Digests) -> str:
    """Returns what to say where finished stages were measured on other validation images; else nothing."""
    changed: dict[str, str] = {}
    for stage in stages:
        changed |= others(stage.get("data", {}), now, "val")
    return f"validation images have changed ({'; '.join(changed.values())})" if changed else ""


def measured_now(data: Digests, now: Digests) -> dict[str, dict[str, Any]]:
    """Returns what a stage saw, with the validation images of today."""
    return {
        stream: {**splits, **({"val": now[stream]["val"]} if stream in now else {})} for stream, splits in data.items()
    }
