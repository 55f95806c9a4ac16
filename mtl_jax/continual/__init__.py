"""Continual-learning methods, one file each, all of the shape of `method.Method`."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtl_jax.continual.method import Method

    METHODS: dict[str, type[Method]]

# A stage names them as keep={"lwf": {"weight": 4.0}}; their hooks run in this order. Key -> file, class.
PLACES = {
    # parameters are held near where old stages left them
    "ewc": ("ewc", "EWC"),
    "mas": ("mas", "MAS"),
    "si": ("si", "SI"),
    # images of old stages come back
    "replay": ("replay", "Replay"),
    "paste": ("paste", "Paste"),
    "der": ("der", "DER"),
    "agem": ("agem", "AGEM"),
    # the network before the stage teaches
    "lwf": ("lwf", "LwF"),
    # the loss knows which classes a stage shows more often
    "logit_adjustment": ("logit_adjustment", "LogitAdjustment"),
    # updates leave a space alone
    "gpm": ("gpm", "GPM"),
}


def __getattr__(name: str) -> Any:
    """Imports `METHODS` on first use: the losses alone are needed where no image library is installed."""
    if name != "METHODS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    methods = {
        key: getattr(importlib.import_module(f"{__name__}.{module}"), method)
        for key, (module, method) in PLACES.items()
    }
    return globals().setdefault(name, methods)
