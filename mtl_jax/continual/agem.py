"""Averaged gradient episodic memory: the new gradient never points against that of the replayed exemplars."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from mtl_jax.continual.method import Method, StageTasks, StageView, Starting
from mtl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class AGEM(Method):
    """The gradient of replayed images is a constraint: the update must not increase their loss to first order.

    References:
        Chaudhry, Ranzato, Rohrbach, Elhoseiny, "Efficient Lifelong Learning with A-GEM", 2019.
    """

    def refuse(self, stage: StageView, starting: Starting) -> None:
        if not self.opposed(starting.tasks):
            raise UserError(
                f"{stage.location}.keep.agem: expected exemplars of an old task, found none; set keep.replay.images of "
                "an earlier stage and keep.replay.batch_size of this one"
            )
        if stage.balance != "sum":
            raise UserError(
                f'{stage.location}.balance: expected "sum" with keep.agem, which takes its place, found '
                f"{stage.balance!r}; set it to that"
            )

    def opposed(self, tasks: StageTasks) -> tuple[str, ...]:
        return tuple(task for task in tasks.only_old if task in tasks.replayed)

    def combine(self, gradient: PyTree, opposed: PyTree) -> PyTree:
        return project(gradient, opposed)


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
