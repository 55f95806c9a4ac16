"""Reads a stage's `keep` section into methods: checks names, types and ranges, and fills in defaults."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtl_jax.config import checks
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
            raise UserError(f"{location} names {name}, which is no method; {checks.suggestion(str(name), METHODS)}")
    keep = {name: _method(f"{location}.{name}", METHODS[name], table[name]) for name in METHODS if name in table}
    for name, method in keep.items():
        method.check(f"{location}.{name}", keep, tasks)
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
            "keep": {method: dataclasses.asdict(method_settings) for method, method_settings in keep.items()},
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


def _method(location: str, kind: type[Method], stage_memory: Any) -> Method:
    if not isinstance(stage_memory, Mapping) and not hasattr(stage_memory, "items"):
        raise UserError(f"{location}: expected a table of settings, such as {_example(kind)}, found {stage_memory!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in stage_memory:
        if name not in fields:
            raise UserError(f"{location} has no setting {name}; {checks.suggestion(str(name), fields)}")
    settings = {name: _plain(stage_memory[name], str(fields[name].type)) for name in stage_memory}
    checks.check_arguments(location, settings, kind)
    for name, value in settings.items():
        _check_range(f"{location}.{name}", value, fields[name].metadata)
    return kind(**settings)


def _example(kind: type[Method]) -> dict[str, Any]:
    """One setting with its default; a method without any takes an empty table."""
    return {field.name: getattr(kind(), field.name) for field in dataclasses.fields(kind)[:1]}


def _plain(value: Any, kind: str) -> Any:
    """A value in the type of its field where it can be: a tuple for "neck,head", 2.0 for 2."""
    if kind.startswith("tuple") and isinstance(value, str | list | tuple):
        words = value.split(",") if isinstance(value, str) else value
        return tuple(str(word).strip() for word in words if str(word).strip())
    if kind.startswith("Mapping") and hasattr(value, "items"):
        return {name: _plain(value_inside, "float") for name, value_inside in value.items()}
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return float(value) if kind == "float" and is_whole else value


def _check_range(location: str, value: Any, range_limits: Mapping[str, Any]) -> None:
    if isinstance(value, dict):
        for name, value_inside in value.items():
            if not isinstance(value_inside, numbers.Real):
                raise UserError(f"{location}.{name}: expected a number, found {value_inside!r}")
            _check_range(f"{location}.{name}", value_inside, range_limits)
    elif isinstance(value, numbers.Real) and not isinstance(value, bool):
        if not range_limits["least"] <= value <= range_limits["most"]:
            limits = f"at least {range_limits['least']:g} and at most {range_limits['most']:g}"
            raise UserError(f"{location}: expected {limits}, found {value}")
    elif range_limits["choices"]:
        checks.require_choice(location, value, range_limits["choices"])
