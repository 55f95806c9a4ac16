"""Configurations as pages write them: start from `base()` and set what differs from the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.config.run_settings import RunSettings
from mtl_jax.config.section import Section, defaults, require_known
from mtl_jax.config.stage_settings import StageSettings
from mtl_jax.config.stream_settings import StreamSettings


def base() -> Any:
    """Returns the settings that every experiment shares; `tasks`, `streams`, `stages` and `order` are left to it."""
    return _table(RunSettings)


def stream(source: str, labels: Mapping[str, str], **changes: Any) -> Any:
    """Returns the settings of one dataset.

    Args:
        source: a key of `mtl_jax.data.sources.SOURCES`.
        labels: task name -> the source's name for the label.
        **changes: settings that differ from the defaults; `options` are keyword arguments of the source.
    """
    return _changed(StreamSettings, {"source": source, "labels": labels, **changes}, f"stream({source!r})")


def stage(streams: tuple[str, ...], **changes: Any) -> Any:
    """Returns the settings of one stage: what it trains on, how long, and what keeps the old tasks.

    Args:
        streams: names of the streams that the stage trains on.
        **changes: settings that differ from the defaults.
    """
    return _changed(StageSettings, {"streams": streams, **changes}, f"stage({streams!r})")


def _table(section: type[Section]) -> Any:
    """The defaults of a section, to be changed; types are checked when it is read."""
    return ConfigDict(defaults(section), type_safe=False)


def _changed(section: type[Section], changes: Mapping[str, Any], location: str) -> Any:
    settings = _table(section)
    for name in changes:
        require_known(section, location, name)
    for name, value in changes.items():
        settings[name] = ConfigDict(dict(value), type_safe=False) if isinstance(value, Mapping) else value
    return settings
