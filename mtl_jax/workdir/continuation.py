"""Whether a configuration goes on with stages that were trained with another: what they depend on must be equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax import config as config_lib
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
    "loader_threads",
    "log_every_steps",
    "name",
    "offline",
    "on_nan",
    "resume",
    "survey_images",
    "tolerated_leakage_percent",
)
IMPORTANCE = "importance of parameters (ewc_strength of a later stage)"
NEW_TASKS = "; a network that a stage has trained keeps its tasks: name those of later stages in config.tasks at once"
SHOWN = 4  # differences that an error lists


def refuse_another(
    path: Path, before: Mapping[str, Any], now: Mapping[str, Any], *, stages: int, partly: bool = False
) -> list[str]:
    """Checks that a configuration goes on with the stages of a checkpoint.

    Args:
        path: of the checkpoint.
        before: the configuration that it was saved with, as read.
        now: the resolved configuration.
        stages: how many stages, in their order, the checkpoint depends on.
        partly: the last of them is not finished.

    Returns:
        What differs of the stages that follow, as `differences` says it.

    Raises:
        UserError: names the settings that differ.
    """
    before, now = (files.without_nan(config_lib.completed(each)) for each in (before, now))
    changed = [
        *differences(_learnt_from(before, stages), _learnt_from(now, stages)),
        *_left_out(before, now, stages, partly=partly),
    ]
    if changed:
        hint = "" if before["tasks"].keys() == now["tasks"].keys() else NEW_TASKS
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise UserError(
            f"{path} holds a run of another configuration ({'; '.join(changed[:SHOWN])}{more}); name another "
            f"--workdir, set the old values, or remove {path.parent if partly else path} to train its last stage "
            f"again{hint}"
        )
    return differences(learnt_from(before), learnt_from(now))


def learnt_from(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns every setting that changes what is learnt: by "stages.seg.epochs" and so on.

    Args:
        config: a resolved configuration, as plain values.
    """
    return _flat({name: value for name, value in config.items() if name not in NOT_LEARNT_FROM})


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns "name was old, is new" for each setting that differs.

    Args:
        before: name -> value, as `learnt_from` returns them.
        now: likewise.
    """
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return [f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in names]


def _learnt_from(config: Mapping[str, Any], stages: int) -> dict[str, Any]:
    """What the first stages depend on: their settings, streams and tasks, and the network with all its tasks."""
    order = list(config["order"])[:stages]
    own_stages = {name: config["stages"][name] for name in order}
    own_streams = {stream: config["streams"][stream] for name in order for stream in config["stages"][name]["streams"]}
    learnt = {task for settings in own_streams.values() for task in settings["labels"]}
    tasks = {
        name: task if name in learnt else {key: task[key] for key in ("kind", "classes") if key in task}
        for name, task in config["tasks"].items()
    }
    own = {"order": order, "stages": own_stages, "streams": own_streams, "tasks": tasks}
    return learnt_from({**config, **own})


def _left_out(before: Mapping[str, Any], now: Mapping[str, Any], stages: int, *, partly: bool) -> list[str]:
    """What later stages now ask of finished ones, which did not keep it."""
    found = []
    for number, name in enumerate(list(now["order"])[:stages]):
        had, asked = _kept(before, number), _kept(now, number)
        if partly and number == stages - 1:  # it leaves at its end what is asked then; "si" follows it from its start
            follows = now["stages"][name]["ewc_importance"] == "si"
            had, asked = (([IMPORTANCE] if follows and IMPORTANCE in each else []) for each in (had, asked))
            found += [f"stage {name} was to leave {IMPORTANCE}, is not to" for what in had if what not in asked]
        found += [f"stage {name} was to leave no {what}, is to" for what in asked if what not in had]
    return found


def _kept(config: Mapping[str, Any], number: int) -> list[str]:
    """What a stage leaves for the later ones of its order."""
    later: Sequence[Any] = [config["stages"][name] for name in list(config["order"])[number + 1 :]]
    own = config["stages"][config["order"][number]]
    held = own["gpm_energy"] and later
    asked = {
        "trace of what its kernels read (gpm_energy)": bool(held),
        IMPORTANCE: any(each["ewc_strength"] for each in later),
        "exemplars (replay_batch_size of a later stage)": own["replay_images"]
        and any(each["replay_batch_size"] for each in later),
        "outputs of exemplars (der_weight of a later stage)": own["replay_images"]
        and any(each["der_weight"] for each in later),
    }
    return [what for what, is_asked in asked.items() if is_asked]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, branch in tree.items():
        flat |= _flat(branch, f"{prefix}{name}.") if isinstance(branch, Mapping) else {f"{prefix}{name}": branch}
    return flat
