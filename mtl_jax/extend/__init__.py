"""Grows a finished run into a new one: further tasks and classes, or other names, with the old ones as they are."""

from mtl_jax.extend.edit import edit
from mtl_jax.extend.run import extend

__all__ = ["edit", "extend"]
