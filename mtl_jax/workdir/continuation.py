"""Compatibility of a configuration with stages trained by another: all that they depend on must be equal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl_jax import config as config_lib
from mtl_jax.continual import reading
from mtl_jax.errors import UserError
from mtl_jax.workdir import files

# Settings that may differ between two starts of one run: where things are and how fast they go, not what is learnt.
NOT_LEARNT_FROM = (
    "cache_gb",
    "checkpoint_every_seconds",
    "contract",
    "data_root",
    "example_images",
    "forward_transfer",
    "keep_checkpoints",
    "loader_processes",
    "loader_threads",
    "log_every_steps",
    "name",
    "offline",
    "on_nan",
    "resume",
    "survey_images",
    "tolerated_leakage_percent",
)
NEW_TASKS = "; a network that a stage has trained keeps its tasks: name those of later stages in config.tasks at once"
SHOWN = 4  # differences that an error lists


def refuse_another(
    path: Path, before: Mapping[str, Any], current: Mapping[str, Any], *, stages: int, partly: bool = False
) -> list[str]:
    """Checks that a configuration continues the stages of a checkpoint.

    Args:
        path: of the checkpoint.
        before: the configuration that it was saved with, as read.
        current: the resolved configuration.
        stages: how many stages, in their order, the checkpoint depends on.
        partly: the last of them is not finished.

    Returns:
        What differs of the stages that follow, as `differences` says it.

    Raises:
        UserError: names the settings that differ.
    """
    before, current = (
        files.without_nan(reading.completed(config_lib.completed(config))) for config in (before, current)
    )
    differences_shown = [
        *differences(_learnt_from(before, stages), _learnt_from(current, stages)),
        *_left_out(before, current, stages, partly=partly),
    ]
    if differences_shown:
        hint = "" if before["tasks"].keys() == current["tasks"].keys() else NEW_TASKS
        remainder = f" and {len(differences_shown) - SHOWN} more" if len(differences_shown) > SHOWN else ""
        raise UserError(
            f"{path} holds a run of another configuration ({'; '.join(differences_shown[:SHOWN])}{remainder}); name "
            "another "
            f"--workdir, set the old values, or remove {path.parent if partly else path} to train its last stage "
            f"again{hint}"
        )
    return differences(learnt_from(before), learnt_from(current))


def learnt_from(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns every setting that changes what is learnt: by "stages.seg.epochs" and so on.

    Args:
        config: a resolved configuration, as plain values.
    """
    return _flat({name: value for name, value in config.items() if name not in NOT_LEARNT_FROM})


def differences(before: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Returns "name was old, is new" for each setting that differs.

    Args:
        before: name -> value, as returned by `learnt_from`.
        current: name -> value, as returned by `learnt_from`.
    """
    names = sorted(name for name in before.keys() | current.keys() if before.get(name) != current.get(name))
    return [f"{name} was {before.get(name)!r}, is {current.get(name)!r}" for name in names]


def _learnt_from(config: Mapping[str, Any], stages: int) -> dict[str, Any]:
    """Settings that the first stages depend on: their own, those of streams and tasks, and the whole network."""
    order = list(config["order"])[:stages]
    own_stages = {name: config["stages"][name] for name in order}
    own_streams = {stream: config["streams"][stream] for name in order for stream in config["stages"][name]["streams"]}
    learnt_tasks = {task for settings in own_streams.values() for task in settings["labels"]}
    tasks = {
        name: task if name in learnt_tasks else {key: task[key] for key in ("kind", "classes") if key in task}
        for name, task in config["tasks"].items()
    }
    training_config = {"order": order, "stages": own_stages, "streams": own_streams, "tasks": tasks}
    return learnt_from({**config, **training_config})


def _left_out(before: Mapping[str, Any], current: Mapping[str, Any], stages: int, *, partly: bool) -> list[str]:
    """Memory that later stages now need of finished ones, which did not keep it."""
    messages = []
    for number, name in enumerate(list(current["order"])[:stages]):
        # An unfinished last stage stores at its end what the current settings need, except for memory that is collected
        # from its start.
        is_begun = partly and number == stages - 1
        memory_before, memory_now = (_stored_memory(config, number, followed=is_begun) for config in (before, current))
        if is_begun:
            messages += [
                f"stage {name} was to leave {noun}, is not to" for noun in memory_before if noun not in memory_now
            ]
        messages += [f"stage {name} was to leave no {noun}, is to" for noun in memory_now if noun not in memory_before]
    return messages


def _stored_memory(config: Mapping[str, Any], number: int, *, followed: bool) -> list[str]:
    """Memory that a stage leaves for the later ones; with `followed` only that which is updated from step to step."""
    keeps = reading.read_order(config)
    methods = reading.in_stage(keeps, number).values()
    return [noun for method in methods if method.follows or not followed for noun in method.leaves(keeps, number)]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, branch in tree.items():
        flat |= _flat(branch, f"{prefix}{name}.") if isinstance(branch, Mapping) else {f"{prefix}{name}": branch}
    return flat
