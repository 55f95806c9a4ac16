"""Configuration pages: loaded, completed, checked, and where their data is."""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl_jax.config import checks, defaults, legacy
from mtl_jax.config.settings import base, stage, stream
from mtl_jax.errors import UserError


def load_page(path: Path) -> Any:
    """Imports a configuration page, for its `get_config` and constants.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"expected a page like configs/seq.py, found no Python file {path}")
    page = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(page)
    except Exception as error:  # whatever the page does wrong
        raise UserError(f"{path} cannot be read: {error}") from error
    return page


def data_root(config: Any) -> Path:
    """Returns the folder of datasets: the config's, or else $MTL_JAX_DATA, or else ./data."""
    return Path(config.data_root or os.environ.get("MTL_JAX_DATA") or "data").expanduser()


def completed(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration that was saved, with the defaults of settings that have come since, and today's names.

    Args:
        saved: a resolved configuration, as plain values.
    """
    config = {**base().to_dict(), **legacy.translated(saved)}
    for section, default in (("model", defaults.MODEL), ("contract", defaults.CONTRACT)):
        config[section] = _filled(config[section], default)
    for section, default in (("streams", defaults.STREAM), ("stages", defaults.STAGE)):
        if isinstance(config[section], Mapping):
            config[section] = {name: _filled(each, default) for name, each in config[section].items()}
    return config


def _filled(section: Any, default: dict[str, Any]) -> Any:
    return copy.deepcopy(default) | dict(section) if isinstance(section, Mapping) else section


def resolve(config: Any) -> None:
    """Splits the lists of names that a command line gives as one string ("seg,det"), and validates the config.

    Raises:
        UserError: as `validate`.
    """
    config.order = _split(config.order)
    for settings in config.stages.values():
        settings.streams = _split(settings.streams)
        settings.freeze = _split(settings.freeze)
    validate(config)


def _split(names: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(part.strip() for name in names for part in str(name).split(",") if part.strip())


def validate(config: Any) -> None:
    """Checks names, types, ranges and choices, and that the parts of the config name each other.

    Raises:
        UserError: a stage without a stream, a stream without a task, a number out of range.
    """
    checks.check(config, base(), stream("", {}), stage(()))
