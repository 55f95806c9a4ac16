"""Synaptic intelligence: importance is a parameter's contribution to the decrease of the loss."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from mtl_jax.continual.consolidation import Consolidation
from mtl_jax.continual.method import Finished, StageView

DAMPING = 0.1  # xi in the paper's equation 5: bounds the importance of parameters that hardly moved


@dataclasses.dataclass(frozen=True)
class SI(Consolidation):
    """Parameters are held by their part in the fall of the loss.

    References:
        Zenke, Poole, Ganguli, "Continual Learning Through Synaptic Intelligence", 2017.
    """

    follows: ClassVar[bool] = True

    def start(self, stage: StageView, params: PyTree) -> PyTree | None:
        is_needed = self.leaves(stage.keeps, stage.index)
        return jax.tree.map(jnp.zeros_like, params) if is_needed else None

    def step(self, state: PyTree, gradient: PyTree, before: PyTree, after: PyTree) -> PyTree:
        return update_path(state, gradient, before, after)

    def importance(self, stage: StageView, finished: Finished) -> PyTree:
        del stage
        return importance(finished.state, finished.start["params"], finished.end["params"])


def update_path(path: PyTree, gradient: PyTree, before: PyTree, after: PyTree) -> PyTree:
    """Adds one step to the path integral of the loss's fall: -gradient * movement, parameter by parameter.

    Args:
        path: the integral so far; zeros at first.
        gradient: of the stage's loss, without any penalty, at `before`.
        before: parameters before the step.
        after: parameters after it.

    Returns:
        A pytree like `path`, in float32.
    """
    return jax.tree.map(lambda total, slope, old, new: total - slope * (new - old), path, gradient, before, after)


def importance(path: PyTree, start: PyTree, end: PyTree, *, damping: float = DAMPING) -> PyTree:
    """The share of each parameter in the loss's fall, over the square of its way: what `ewc.penalty` holds it by.

    Args:
        path: the integral over a stage, from `update_path`.
        start: parameters when the stage began.
        end: parameters when it ended.
        damping: added to the squared way.

    Returns:
        The importance, a pytree like `path`; parameters that made the loss rise have none.

    References:
        Zenke, Poole, Ganguli, "Continual Learning Through Synaptic Intelligence", 2017, equations 3 to 5. The surrogate
        loss there has no factor 1/2: their c is half of `ewc.penalty`'s strength.
    """

    def share(fall, old, new):
        change = jnp.asarray(new, jnp.float32) - jnp.asarray(old, jnp.float32)
        return jnp.maximum(jnp.asarray(fall), 0.0) / (jnp.square(change) + damping)

    return jax.tree.map(share, path, start, end)
