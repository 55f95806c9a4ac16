"""Memory aware synapses: parameters are held by how much the network's outputs depend on them; no labels are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mtl_jax.continual.ewc import Tree, mean_over_examples


def importance(outputs_fn: Callable[..., Array], params: Tree, batches: Iterable[Any]) -> Tree:
    """The mean over examples of the size of the gradient of the outputs' squared norm.

    It takes the place of the Fisher information in `ewc.penalty` and `ewc.accumulate`.

    Args:
        outputs_fn: `(params, example) -> f32[outputs]`. An example is one row of a batch, without the batch axis.
        params: where the gradient is taken.
        batches: pytrees of arrays with a leading batch axis; they may differ in size.

    Returns:
        The importance in float32, a pytree like `params`.

    Raises:
        UserError: if there is no example.

    References:
        Aljundi et al., "Memory Aware Synapses: Learning what (not) to forget", 2018, equation 4.
    """

    def sensitivity(params, example, key, index):
        del key, index
        gradient = jax.grad(lambda params: jnp.sum(jnp.square(outputs_fn(params, example))))(params)
        return jax.tree.map(lambda leaf: jnp.abs(leaf.astype(jnp.float32)), gradient)

    return mean_over_examples(sensitivity, params, batches)
