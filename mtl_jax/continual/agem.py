"""Averaged gradient episodic memory: the new gradient never points against that of the replayed exemplars."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree


def project(gradient: PyTree, reference: PyTree) -> PyTree:
    """Removes what of a gradient opposes a reference; a gradient that does not oppose it stays as it is.

    g - (g . r) / (r . r) r where g . r < 0: the nearest gradient along which the reference's loss does not rise.

    Args:
        gradient: of the new tasks' loss.
        reference: of the loss on exemplars of the old tasks; a pytree of the same structure and shapes.

    Returns:
        A pytree like `gradient`.

    References:
        Chaudhry, Ranzato, Rohrbach, Elhoseiny, "Efficient Lifelong Learning with A-GEM", 2019, equation 11.
    """
    product = jnp.asarray(optax.tree.vdot(gradient, reference))
    squared = jnp.asarray(optax.tree.vdot(reference, reference))
    opposes = (product < 0) & (squared > 0)
    share = jnp.where(opposes, product / jnp.where(opposes, squared, 1.0), 0.0)
    return jax.tree.map(lambda new, old: new - share * old, gradient, reference)
