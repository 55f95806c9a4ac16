"""Memory aware synapses: importance is the sensitivity of the outputs to a parameter; no labels are needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from mtl_jax.continual import importance as examples_lib
from mtl_jax.continual.consolidation import Consolidation, Tree, mean_over_examples, sum_of
from mtl_jax.continual.method import Finished, StageView, setting


@dataclasses.dataclass(frozen=True)
class MAS(Consolidation):
    """Parameters are held by their effect on the outputs.

    References:
        Aljundi et al., "Memory Aware Synapses: Learning what (not) to forget", 2018.
    """

    examples: int = setting(100, "training images that it is estimated from, at the end of a stage")

    def importance(self, stage: StageView, finished: Finished) -> PyTree:
        forward = examples_lib.forward_of_examples(stage.model, finished.end["batch_stats"])
        return sum_of(
            importance(
                examples_lib.outputs(forward, stage.stream_tasks(stream)),
                finished.end["params"],
                stage.batches(stream, images=self.examples),
            )
            for stream in stage.streams
        )


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
