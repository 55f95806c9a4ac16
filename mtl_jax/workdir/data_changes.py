"""Changes of a run's data since its stages were trained and measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtl_jax.errors import UserError
from mtl_jax.workdir import files

Digests = Mapping[str, Mapping[str, Mapping[str, Any]]]  # stream -> split -> `data_record.CHECKPOINT_FIELDS`


def changed_streams(
    former: Digests, current: Digests, split: str, streams: Iterable[str] | None = None
) -> dict[str, str]:
    """Returns the streams whose split is another than it was, each with what changed of it, in words.

    Args:
        former: what a checkpoint keeps; streams that it knows nothing of count as unchanged.
        current: the same of today.
        split: "train" or "val".
        streams: the ones to compare; all of today's by default.
    """
    changes = {}
    for stream in current if streams is None else streams:
        old, new = former.get(stream, {}).get(split), current.get(stream, {}).get(split)
        if old and new and not _is_unchanged(old, new, "digest"):
            has_same_images = old["images"] == new["images"]
            counts = (
                f"{new['images']}, of which some differ"
                if has_same_images
                else f"{old['images']} then, {new['images']} now"
            )
            changes[stream] = f"stream {stream}: {counts}"
    return changes


def _is_unchanged(old: Mapping[str, Any], new: Mapping[str, Any], digest: str) -> bool:
    """Whether two splits have one digest; of other shares of a split, digests say nothing."""
    if old["images"] == new["images"] and old["looked_at"] != new["looked_at"]:
        return True
    return old[digest] == new[digest]


def refuse_other_baselines(runs: Mapping[str, str], measuring_streams: Mapping[str, str], current: Digests) -> None:
    """Refuses baselines of other validation images than those of now; of runs that kept no digests nothing is known.

    Args:
        runs: task -> work directory of the run whose figure is the baseline; "" for none.
        measuring_streams: task -> the stream on which this run measures it.
        current: today's digests.

    Raises:
        UserError: names the task and the run.
    """
    for task, folder in runs.items():
        judged = files.contract_of_run(folder) if folder and task in measuring_streams else {}
        baseline_data = (judged.get("stages") or [{}])[-1].get("data", {})
        splits = [split["val"] for split in baseline_data.values() if task in split["val"]["tasks"]]
        own_split = current[measuring_streams[task]]["val"] if splits else {}
        if splits and not any(_is_unchanged(_of(split, task), _of(own_split, task), "task") for split in splits):
            raise UserError(
                f"contract.baseline_from.{task}: expected a figure of the {own_split['images']} validation images of "
                "stream "
                f"{measuring_streams[task]} in {folder}, found one of others ({splits[0]['images']}); train that run "
                "again on these images, or leave baseline_from out"
            )


def _of(split: Mapping[str, Any], task: str) -> dict[str, Any]:
    return {"images": split["images"], "looked_at": split["looked_at"], "task": split["tasks"][task]}


def trained_on_others(
    stages: Sequence[Mapping[str, Any]], streams: Mapping[str, Sequence[str]], current: Digests
) -> list[str]:
    """Returns one sentence about each finished stage that was trained on other images than are there now.

    Args:
        stages: finished, each with its name and the "data" that it saw.
        streams: stage -> what it trains on.
        current: today's digests.
    """
    messages = []
    for stage in stages:
        changes = changed_streams(stage.get("data", {}), current, "train", streams.get(stage["name"], ()))
        if changes:
            messages.append(
                f"stage {stage['name']} was trained on other images than are there now ({'; '.join(changes.values())})"
            )
    return messages


def measured_on_others(stages: Sequence[Mapping[str, Any]], current: Digests) -> str:
    """Returns what to say where finished stages were measured on other validation images; else nothing."""
    changes: dict[str, str] = {}
    for stage in stages:
        changes |= changed_streams(stage.get("data", {}), current, "val")
    return f"validation images have changed ({'; '.join(changes.values())})" if changes else ""


def measured_now(data: Digests, current: Digests) -> dict[str, dict[str, Any]]:
    """Returns what a stage saw, with the validation images of today."""
    return {
        stream: {**splits, **({"val": current[stream]["val"]} if stream in current else {})}
        for stream, splits in data.items()
    }
