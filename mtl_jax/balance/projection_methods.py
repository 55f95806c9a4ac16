"""Balancing methods that project gradients onto directions without conflict, as Optax transforms to one update."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from mtl_jax.balance import projection_weights
from mtl_jax.balance.transform import CAPACITY, Decision, by_gramian, check_capacity


def pcgrad(seed: int = 0) -> optax.GradientTransformationExtraArgs:
    """Removes from each task's gradient what conflicts with the others', in random order, and adds them.

    Args:
        seed: of the key in the state, which draws the order of the projections again for every task and step.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.pcgrad()
        >>> update, _ = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> [round(x, 4) for x in update.tolist()]
        [0.5848, 3.8012, 3.8012]

    References:
        Yu, Kumar, Gupta, Levine, Hausman, Finn, "Gradient Surgery for Multi-Task Learning", 2020.
    """

    def decide(products: Array, key: Array, losses: Array | None) -> Decision:
        del losses
        next_key, key = jax.random.split(key)
        return Decision(projection_weights.pcgrad_weights(products, key=key), next_key)

    return by_gramian(decide, lambda: jax.random.key(seed))


def gradvac(beta: float = 0.5, seed: int = 0, max_tasks: int = CAPACITY) -> optax.GradientTransformationExtraArgs:
    """Turns each task's gradient towards the others until their cosines reach those of the past, and adds them.

    Args:
        beta: share of the present cosine in the running average of each pair's, which begins at zero: the first step
            is PCGrad's.
        seed: of the key in the state, which draws the order of the others again for every task and step.
        max_tasks: that the state has room for.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["gradvac"]()
        >>> update, _ = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> [round(x, 4) for x in update.tolist()]
        [0.5848, 3.8012, 3.8012]

    References:
        Wang, Tsvetkov, Firat, Cao, "Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively
        Multilingual Models", 2021.
    """

    def decide(products: Array, state: tuple[Array, Array], losses: Array | None) -> Decision:
        del losses
        (next_key, key), (_, targets) = jax.random.split(state[0]), state
        tasks = products.shape[0]
        check_capacity(tasks, max_tasks)
        weights, is_positive = projection_weights.gradvac_weights(products, targets[:tasks, :tasks], key=key, beta=beta)
        return Decision(weights, (next_key, targets.at[:tasks, :tasks].set(is_positive)))

    return by_gramian(decide, lambda: (jax.random.key(seed), jnp.zeros((max_tasks, max_tasks))))


def upgrad(regularisation: float = 1e-4) -> optax.GradientTransformationExtraArgs:
    """Projects each task's gradient onto the directions that oppose no task, and averages the projections.

    Args:
        regularisation: added to the diagonal of the gradients' inner products, as a share of their trace; with 0 the
            projection is exact.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["upgrad"]()
        >>> update, _ = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> [round(x, 4) for x in update.tolist()]
        [0.2929, 1.9004, 1.9004]

    References:
        Quinton, Rey, "Jacobian Descent for Multi-Objective Optimization", 2024.
    """

    def decide(products: Array, state: tuple, losses: Array | None) -> Decision:
        del losses
        weights, residual = projection_weights.upgrad_weights(products, regularisation=regularisation)
        return Decision(weights, state, residual)

    return by_gramian(decide)


def dual_proj(regularisation: float = 1e-4) -> optax.GradientTransformationExtraArgs:
    """Projects the mean gradient onto the directions that oppose no task.

    Args:
        regularisation: added to the diagonal of the gradients' inner products, as a share of their trace; with 0 the
            projection is exact.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["dual_proj"]()
        >>> update, _ = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> [round(x, 4) for x in update.tolist()]
        [0.5563, 1.1109, 1.1109]

    References:
        Lopez-Paz, Ranzato, "Gradient Episodic Memory for Continual Learning", 2017 (equation 11).
    """

    def decide(products: Array, state: tuple, losses: Array | None) -> Decision:
        del losses
        weights, residual = projection_weights.dual_proj_weights(products, regularisation=regularisation)
        return Decision(weights, state, residual)

    return by_gramian(decide)
