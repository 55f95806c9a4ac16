"""One small vision network for many tasks: multi-task and continual learning in JAX.

import mtl_jax

contract = mtl_jax.train("configs/seq.py", "runs/seq", {"stages.det.epochs": 50})
figures = mtl_jax.evaluate("runs/seq")
for predicted in mtl_jax.predict("runs/seq", ["photo.jpg"]):
    print(predicted.outputs)
network = mtl_jax.load("runs/seq")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtl_jax import predict as predict  # a module that can be called
    from mtl_jax.evaluation.evaluate_checkpoint import run as evaluate
    from mtl_jax.training.run import train
    from mtl_jax.workdir.trained import load

__all__ = ["evaluate", "load", "predict", "train"]
__version__ = "0.2.0"
_PLACES = {
    "train": ("mtl_jax.training.run", "train"),
    "evaluate": ("mtl_jax.evaluation.evaluate_checkpoint", "run"),
    "load": ("mtl_jax.workdir.trained", "load"),
}


def __getattr__(name: str) -> Any:
    """Imports on first use: the command line should not wait for JAX."""
    if name == "predict":
        return importlib.import_module("mtl_jax.predict")  # a module that can be called
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, function = _PLACES[name]
    return getattr(importlib.import_module(module), function)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
