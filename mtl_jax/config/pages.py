"""Configuration pages: loaded, completed, resolved, and where their data is."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl_jax.config import former, legacy, order_checks
from mtl_jax.config.contract_settings import ContractSettings
from mtl_jax.config.model_settings import ModelSettings
from mtl_jax.config.run_settings import RunSettings, check, read_settings
from mtl_jax.config.section import RULE, Section, defaults
from mtl_jax.config.stage_settings import StageSettings
from mtl_jax.config.stream_settings import StreamSettings
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


def completed(config_saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration that was saved, with the names of now, and defaults of settings that have come since.

    Args:
        config_saved: a resolved configuration, as plain values.
    """
    config = (
        RunSettings().to_dict() | former.renamed(legacy.translated(config_saved)) | _infinite(config_saved, RunSettings)
    )
    for name, section in (("model", ModelSettings), ("contract", ContractSettings)):
        config[name] = _filled(config[name], section)
    for name, section in (("streams", StreamSettings), ("stages", StageSettings)):
        if isinstance(config[name], Mapping):
            config[name] = {key: _filled(value, section) for key, value in config[name].items()}
    return config


def _filled(config_saved: Any, section: type[Section]) -> Any:
    """A section with the defaults of what it lacks, and the infinities that JSON has no number for."""
    if not isinstance(config_saved, Mapping):
        return config_saved
    return section.sections(defaults(section) | dict(config_saved) | _infinite(config_saved, section))


def _infinite(config_saved: Mapping[str, Any], section: type[Section]) -> dict[str, float]:
    endless = [field.name for field in dataclasses.fields(section) if _may_be_endless(field)]
    return {name: math.inf for name in endless if name in config_saved and config_saved[name] is None}


def _may_be_endless(field: dataclasses.Field[Any]) -> bool:
    return RULE in field.metadata and field.metadata[RULE].most == math.inf


def resolve(config: Any) -> RunSettings:
    """Reads a configuration, and checks that its parts name each other.

    Args:
        config: a page's ConfigDict, or plain values.

    Raises:
        UserError: the first setting that does not fit, with what was expected.
    """
    settings = read_settings(config)
    check(settings)
    order_checks.check(settings)
    return settings
