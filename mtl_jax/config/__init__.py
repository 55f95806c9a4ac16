"""Configuration of a run: sections of settings with their defaults, pages that change some, and their checks."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtl_jax.config.pages import completed, data_root, load_page, resolve
    from mtl_jax.config.run_settings import RunSettings, read_settings
    from mtl_jax.config.settings import base, stage, stream

__all__ = ["RunSettings", "base", "completed", "data_root", "load_page", "read_settings", "resolve", "stage", "stream"]
_PLACES: dict[str, str] = {
    **dict.fromkeys(("base", "stage", "stream"), "settings"),
    **dict.fromkeys(("RunSettings", "read_settings"), "run_settings"),
}


def __getattr__(name: str) -> Any:
    """Imports on first use: sections are plain classes, and needed where ml_collections is not installed."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES.get(name, 'pages')}"), name)
