"""What a run is asked to do: every setting with its default, pages that change some, and their checks."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtl_jax.config.pages import completed, data_root, load_page, resolve, validate
    from mtl_jax.config.settings import base, stage, stream

__all__ = ["base", "completed", "data_root", "load_page", "resolve", "stage", "stream", "validate"]
_PLACES: dict[str, str] = dict.fromkeys(("base", "stage", "stream"), "settings")


def __getattr__(name: str) -> Any:
    """Imports on first use: the defaults are plain values, and needed where ml_collections is not installed."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES.get(name, 'pages')}"), name)
