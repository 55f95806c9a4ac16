"""Configurations: a page in `configs/` starts from `base()` and says what differs from `defaults.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.config import defaults, legacy
from mtl_jax.errors import UserError


def base() -> Any:
    """Returns the settings that every experiment shares; `tasks`, `streams`, `stages` and `order` are left to it."""
    return ConfigDict({**defaults.EXPERIMENT, "model": defaults.MODEL, "contract": defaults.CONTRACT})


def stream(source: str, labels: Mapping[str, str], **changes: Any) -> Any:
    """Returns the settings of one dataset.

    Args:
        source: a key of `mtl_jax.data.sources.SOURCES`.
        labels: task name -> the source's name for the label.
        **changes: settings that differ from the defaults; `options` are keyword arguments of the source.
    """
    return _changed(ConfigDict(defaults.STREAM), {"source": source, "labels": labels, **changes}, f"stream({source!r})")


def stage(streams: tuple[str, ...], **changes: Any) -> Any:
    """Returns the settings of one stage: what it trains on, how long, and what keeps the old tasks.

    Args:
        streams: names of the streams that the stage trains on.
        **changes: settings that differ from the defaults.
    """
    return _changed(ConfigDict(defaults.STAGE), {"streams": streams, **changes}, f"stage({streams!r})")


def _changed(settings: Any, changes: Mapping[str, Any], where: str) -> Any:
    unknown = sorted(set(changes) - set(settings))
    moved = [f"{name} is now {legacy.FLAT[name]}" for name in unknown if name in legacy.FLAT and "keep" in settings]
    if unknown:
        known = "; ".join(moved) or f"it has {', '.join(sorted(settings))}"
        raise UserError(f"{where} has no setting {', '.join(unknown)}; {known}")
    for name, value in changes.items():
        settings[name] = ConfigDict(dict(value)) if isinstance(value, Mapping) else value
    return settings
