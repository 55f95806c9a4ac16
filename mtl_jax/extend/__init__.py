"""Growth of a finished run: adds tasks and classes, or renames classes, without changing old outputs."""

from mtl_jax.extend.edit import edit
from mtl_jax.extend.run import extend

__all__ = ["edit", "extend"]
