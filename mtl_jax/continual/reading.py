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
        keeps, tasks, order = {name: each.keep for name, each in config.stages.items()}, config.tasks, config.order
    else:
        keeps = {name: each["keep"] for name, each in config["stages"].items()}
        tasks, order = config["tasks"], config["order"]
    return tuple(read(keeps[name], location=f"config.stages.{name}.keep", tasks=tuple(tasks)) for name in order)


def in_stage(keeps: Sequence[Keep], index: int) -> dict[str, Method]:
    """Returns the methods that act in a stage, named there or called for by others, in the order of `METHODS`."""
    found = {name: kind.in_stage(keeps, index, name) for name, kind in METHODS.items()}
    return {name: method for name, method in found.items() if method is not None}


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration in which every setting of every method that a stage names has a value.

    Args:
        config: resolved, as plain values.

    Raises:
        UserError: as `read`.
    """
    tasks = tuple(config["tasks"])

    def filled(name: str, stage: Mapping[str, Any]) -> dict[str, Any]:
        keep = read(stage["keep"], location=f"config.stages.{name}.keep", tasks=tasks)
        return {**stage, "keep": {method: dataclasses.asdict(each) for method, each in keep.items()}}

    return {**config, "stages": {name: filled(name, stage) for name, stage in config["stages"].items()}}


def complete(config: RunSettings) -> RunSettings:
    """As `completed`, of settings.

    Raises:
        UserError: as `read`.
    """
    kept = completed(config.to_dict())["stages"]
    stages = {name: dataclasses.replace(each, keep=kept[name]["keep"]) for name, each in config.stages.items()}
    return dataclasses.replace(config, stages=stages)


def _method(location: str, kind: type[Method], given: Any) -> Method:
    if not isinstance(given, Mapping) and not hasattr(given, "items"):
        raise UserError(f"{location}: expected a table of settings, such as {_example(kind)}, found {given!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in given:
        if name not in fields:
            raise UserError(f"{location} has no setting {name}; {checks.suggestion(str(name), fields)}")
    settings = {name: _plain(given[name], str(fields[name].type)) for name in given}
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
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(str(part).strip() for part in parts if str(part).strip())
    if kind.startswith("Mapping") and hasattr(value, "items"):
        return {name: _plain(each, "float") for name, each in value.items()}
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return float(value) if kind == "float" and is_whole else value


def _check_range(location: str, value: Any, allowed: Mapping[str, Any]) -> None:
    if isinstance(value, dict):
        for name, each in value.items():
            if not isinstance(each, numbers.Real):
                raise UserError(f"{location}.{name}: expected a number, found {each!r}")
            _check_range(f"{location}.{name}", each, allowed)
    elif isinstance(value, numbers.Real) and not isinstance(value, bool):
        if not allowed["least"] <= value <= allowed["most"]:
            limits = f"at least {allowed['least']:g} and at most {allowed['most']:g}"
            raise UserError(f"{location}: expected {limits}, found {value}")
    elif allowed["choices"]:
        checks.among(location, value, allowed["choices"])
