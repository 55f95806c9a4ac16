"""Grows a finished run into a new one: further tasks, with the old ones as they are."""

from mtl_jax.extend.run import extend

__all__ = ["extend"]
