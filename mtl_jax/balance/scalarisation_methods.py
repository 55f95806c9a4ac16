"""Balancing methods whose weights are given or drawn, and look at neither gradients nor losses, as Optax transforms."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from mtl_jax.balance import gradient_weights
from mtl_jax.balance.transform import Decision, by_gramian, without_gradients


def equal_sum() -> optax.GradientTransformationExtraArgs:
    """Adds the tasks' gradients: the plain gradient of the summed losses.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["sum"]()
        >>> update, _ = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> update.tolist()
        [2.0, 2.0, 2.0]
    """
    return by_gramian(lambda products, state, losses: Decision(gradient_weights.sum_weights(products), state))


def equal_mean() -> optax.GradientTransformationExtraArgs:
    """Averages the tasks' gradients: the plain gradient of the mean loss.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["mean"]()
        >>> update, _ = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> update.tolist()
        [1.0, 1.0, 1.0]
    """
    return without_gradients(lambda tasks, state, losses: Decision(jnp.full(tasks, 1.0 / tasks), state))


def fixed(weights: Sequence[float] | None = None) -> optax.GradientTransformationExtraArgs:
    """Weights the losses by given numbers: the plain gradient of the weighted sum of losses (scalarisation).

    Args:
        weights: one weight per task, in the order of the gradients; without them every task has weight 1.

    Raises:
        ValueError: at the update, if the number of weights is not that of the tasks.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.fixed([1.0, 0.5])
        >>> update, _ = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> update.tolist()
        [-1.0, 1.5, 1.5]

    References:
        Xin, Ghorbani, Gilmer, Garg, Firat, "Do Current Multi-Task Optimization Methods in Deep Learning Even
        Help?", 2022.
    """

    def decide(tasks: int, state: tuple, losses: Array | None) -> Decision:
        del losses
        if weights is None:
            return Decision(jnp.ones(tasks), state)
        if len(weights) != tasks:
            raise ValueError(
                f"expected one weight for each of {tasks} task gradients, found {len(weights)}: "
                "give the weights in the order of the tasks"
            )
        return Decision(jnp.asarray(weights, jnp.float32), state)

    return without_gradients(decide)


def random(seed: int = 0) -> optax.GradientTransformationExtraArgs:
    """Weights the gradients by random numbers of sum 1, drawn again at every step: the control of every comparison.

    Args:
        seed: of the key in the state.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["random"]()
        >>> _, state = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> round(float(state.task_weights.sum()), 4)
        1.0

    References:
        Lin, Ye, Zhang, Tsang, "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning",
        2022 (RGW).
    """

    def decide(tasks: int, key: Array, losses: Array | None) -> Decision:
        del losses
        next_key, key = jax.random.split(key)
        return Decision(gradient_weights.random_weights(tasks, key=key), next_key)

    return without_gradients(decide, lambda: jax.random.key(seed))
