"""Reads a stage's `keep` section into methods: checks names, types and ranges, and fills in defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtl_jax.config import checks, section
from mtl_jax.config.run_settings import RunSettings
from mtl_jax.continual import METHODS
from mtl_jax.continual.method import Keep, Method
from mtl_jax.errors import UserError


def read(table: Any, *, location: str, tasks: Iterable[str] = ()) -> dict[str, Method]:
    """Returns the methods that a stage names, in the order of `METHODS`.

    Args:
        table: key of `METHODS` -> settings that differ from their defaults.
        location: the table's place, for errors.
        tasks: every task of the network.

    Raises:
        UserError: an unknown method or setting, a value of another type or out of range, or methods that do not go
            together.
    """
    for name in table:
        if name not in METHODS:
            raise UserError(
                f"{location}: expected names of methods, found {name!r}; {checks.suggestion(str(name), METHODS)}"
            )
    keep = {name: section.read(METHODS[name], table[name], f"{location}.{name}") for name in METHODS if name in table}
    for name, method in keep.items():
        method.check_keep(f"{location}.{name}", keep, tasks)
    return keep


def read_order(config: RunSettings | Mapping[str, Any]) -> tuple[Keep, ...]:
    """Returns what every stage of a configuration's order names.

    Args:
        config: resolved, or as plain values.

    Raises:
        UserError: as `read`.
    """
    if isinstance(config, RunSettings):
        keeps, tasks, order = {name: stage.keep for name, stage in config.stages.items()}, config.tasks, config.order
    else:
        keeps = {name: stage["keep"] for name, stage in config["stages"].items()}
        tasks, order = config["tasks"], config["order"]
    return tuple(read(keeps[name], location=f"config.stages.{name}.keep", tasks=tuple(tasks)) for name in order)


def in_stage(keeps: Sequence[Keep], index: int) -> dict[str, Method]:
    """Returns the methods that act in a stage, named there or called for by others, in the order of `METHODS`."""
    methods = {name: kind.in_stage(keeps, index, name) for name, kind in METHODS.items()}
    return {name: method for name, method in methods.items() if method is not None}


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration in which every setting of every method that a stage names has a value.

    Args:
        config: resolved, as plain values.

    Raises:
        UserError: as `read`.
    """
    tasks = tuple(config["tasks"])

    def fill_stage(name: str, stage: Mapping[str, Any]) -> dict[str, Any]:
        keep = read(stage["keep"], location=f"config.stages.{name}.keep", tasks=tasks)
        return {
            **stage,
            "keep": {method: method_settings.to_dict() for method, method_settings in keep.items()},
        }

    return {**config, "stages": {name: fill_stage(name, stage) for name, stage in config["stages"].items()}}


def complete(config: RunSettings) -> RunSettings:
    """As `completed`, of settings.

    Raises:
        UserError: as `read`.
    """
    completed_stages = completed(config.to_dict())["stages"]
    stages = {
        name: dataclasses.replace(stage, keep=completed_stages[name]["keep"]) for name, stage in config.stages.items()
    }
    return dataclasses.replace(config, stages=stages)
