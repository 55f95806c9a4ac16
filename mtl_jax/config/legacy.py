"""Configurations that were written when each method against forgetting was a set of flat settings of a stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Flat(NamedTuple):
    """Present name of a setting, and its former default."""

    method: str
    option: str  # "" for a switch
    default: Any

    def __str__(self) -> str:
        return ".".join(word for word in ("keep", self.method, self.option) if word)


FLAT = {
    "ewc_strength": Flat("ewc", "strength", 0.0),
    "ewc_importance": Flat("ewc", "estimator", "empirical"),  # or a method of its own now: "mas", "si"
    "ewc_examples": Flat("ewc", "examples", 100),
    "ewc_mode": Flat("ewc", "mode", "online"),
    "ewc_decay": Flat("ewc", "decay", 1.0),
    "lwf_weight": Flat("lwf", "weight", 0.0),
    "lwf_weights": Flat("lwf", "weights", {}),
    "lwf_balance": Flat("lwf", "balance", "mean"),
    "lwf_feature_weight": Flat("lwf", "feature_weight", 0.0),
    "replay_images": Flat("replay", "images", 0),
    "replay_selection": Flat("replay", "selection", "class_balanced"),
    "replay_max_side": Flat("replay", "max_side", 640),
    "replay_max_mb": Flat("replay", "max_mb", 0.0),
    "replay_batch_size": Flat("replay", "batch_size", 0),
    "replay_weight": Flat("replay", "weight", 1.0),
    "replay_paste": Flat("paste", "share", 0.0),
    "der_weight": Flat("der", "weight", 0.0),
    "gpm_energy": Flat("gpm", "energy", 0.0),
    "gpm_images": Flat("gpm", "images", 100),
    "gpm_layers": Flat("gpm", "layers", ("*",)),
    "agem": Flat("agem", "", False),
}
# Those settings without which a method did nothing.
SWITCHES = {
    "lwf": ("lwf_weight", "lwf_feature_weight"),
    "replay": ("replay_images", "replay_batch_size"),
    "paste": ("replay_paste",),
    "der": ("der_weight",),
    "gpm": ("gpm_energy",),
    "agem": ("agem",),
}


def is_flat(config: Mapping[str, Any]) -> bool:
    """Whether a configuration, as plain values, was written with flat settings."""
    return any(_is_flat(stage) for stage in _stages(config).values())


def translated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration whose stages say under `keep` what their flat settings said.

    Args:
        config: resolved, as plain values; one that has no flat setting comes back as it is.
    """
    stages = _stages(config)
    if not is_flat(config):
        return dict(config)
    keeps = {name: _keep(stage) for name, stage in stages.items() if _is_flat(stage)}
    order = [name for name in config.get("order", ()) if name in keeps]
    for number, name in enumerate(order):
        strengths = [keeps[later_stage] for later_stage in order[number + 1 :] if _strength(keeps[later_stage])]
        # Parameters were measured as the stage itself said, and now as it says or else as the next with a strength.
        if not _strength(keeps[name]) and not (strengths and _measured(keeps[name]) != _measured(strengths[0])):
            keeps[name] = {
                method: method_settings
                for method, method_settings in keeps[name].items()
                if method not in CONSOLIDATIONS
            }
    stages_without = {
        name: {key: value for key, value in stage.items() if key not in FLAT} for name, stage in stages.items()
    }
    return {**config, "stages": {name: {**stages_without[name], "keep": keeps.get(name, {})} for name in stages}}


CONSOLIDATIONS = ("ewc", "mas", "si")


def _stages(config: Mapping[str, Any]) -> Mapping[str, Any]:
    stages = config.get("stages")
    return stages if isinstance(stages, Mapping) else {}


def _is_flat(stage: Any) -> bool:
    return isinstance(stage, Mapping) and bool(FLAT.keys() & stage.keys())


def _keep(stage: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The methods of a stage, every setting spelt out; the measurement of parameters always."""
    old_settings = {name: stage.get(name, flat.default) for name, flat in FLAT.items()}
    keep: dict[str, dict[str, Any]] = {}
    for name, flat in FLAT.items():
        if flat.method == "ewc" or any(old_settings[switch] for switch in SWITCHES[flat.method]):
            keep.setdefault(flat.method, {}).update({flat.option: old_settings[name]} if flat.option else {})
    kind = keep["ewc"]["estimator"]
    if kind in ("mas", "si"):
        ewc_settings = keep.pop("ewc")
        remaining_names = ("estimator", "examples") if kind == "si" else ("estimator",)
        keep[kind] = {option: value for option, value in ewc_settings.items() if option not in remaining_names}
    return keep


def _measured(keep: Mapping[str, Any]) -> dict[str, Any]:
    """How a stage's parameters are measured, without how strongly it holds those of older ones."""
    kind = next(name for name in CONSOLIDATIONS if name in keep)
    return {"kind": kind, **{option: value for option, value in keep[kind].items() if option != "strength"}}


def _strength(keep: Mapping[str, Any]) -> float:
    return next((keep[name]["strength"] for name in CONSOLIDATIONS if name in keep), 0.0)
