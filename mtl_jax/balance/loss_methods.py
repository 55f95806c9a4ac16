"""Balancing methods whose weights follow from the tasks' losses, as Optax transforms to one update."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from mtl_jax.balance import gradient_weights, loss_weights
from mtl_jax.balance.transform import (
    CAPACITY,
    Decision,
    by_losses,
    first_rows,
    with_first_rows,
)


def dwa(
    temperature: float = 2.0, epoch_steps: int = 100, max_tasks: int = CAPACITY
) -> optax.GradientTransformationExtraArgs:
    """Weighs those tasks more whose mean loss fell less over the last two epochs; even before.

    Args:
        temperature: of the softmax; larger is more even.
        epoch_steps: steps over which a mean loss is taken.
        max_tasks: that the state has room for.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["dwa"]()
        >>> gradients = jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
        >>> update, _ = tx.update(gradients, tx.init(jnp.zeros(3)), task_losses=jnp.array([1.0, 2.0]))
        >>> update.tolist()
        [2.0, 2.0, 2.0]

    References:
        Liu, Johns, Davison, "End-to-End Multi-Task Learning with Attention", 2019.
    """

    def decide(losses: Array, state: tuple[Array, Array, Array, Array]) -> Decision:
        step, total, last, before = state
        tasks = losses.shape[0]
        is_started = step >= 2 * epoch_steps
        weights_by_rate = loss_weights.dwa_weights(
            first_rows(last, tasks), first_rows(before, tasks), temperature=temperature
        )
        total = with_first_rows(total, first_rows(total, tasks) + losses)
        ends = (step + 1) % epoch_steps == 0
        after = (
            step + 1,
            jnp.where(ends, 0.0, total),
            jnp.where(ends, total / epoch_steps, last),
            jnp.where(ends, last, before),
        )
        return Decision(jnp.where(is_started, weights_by_rate, 1.0), after)

    return by_losses("dwa", decide, lambda: (jnp.zeros((), jnp.int32), *(jnp.zeros(max_tasks) for _ in range(3))))


def gls() -> optax.GradientTransformationExtraArgs:
    """Descends on the geometric mean of the losses: every task's relative progress counts alike.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["gls"]()
        >>> gradients = jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
        >>> update, _ = tx.update(gradients, tx.init(jnp.zeros(3)), task_losses=jnp.array([1.0, 4.0]))
        >>> [round(x, 4) for x in update.tolist()]
        [-2.5, 1.25, 1.25]

    References:
        Chennupati, Sistu, Yogamani, Rawashdeh, "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss
        Strategy for Multi-Task Learning", 2019.
    """
    return by_losses("gls", lambda losses, state: Decision(loss_weights.gls_weights(losses), state))


def rlw(seed: int = 0) -> optax.GradientTransformationExtraArgs:
    """Weights the losses by random numbers of sum 1, drawn again at every step.

    Args:
        seed: of the key in the state.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["rlw"]()
        >>> gradients = jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
        >>> _, state = tx.update(gradients, tx.init(jnp.zeros(3)), task_losses=jnp.array([1.0, 2.0]))
        >>> round(float(state.task_weights.sum()), 4)
        1.0

    References:
        Lin, Ye, Zhang, Tsang, "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning",
        2022 (RLW).
    """

    def decide(losses: Array, key: Array) -> Decision:
        next_key, key = jax.random.split(key)
        return Decision(gradient_weights.random_weights(losses.shape[0], key=key), next_key)

    return by_losses("rlw", decide, lambda: jax.random.key(seed))


def stch(mu: float = 1.0, ideal: float = 0.0) -> optax.GradientTransformationExtraArgs:
    """Descends on a smooth maximum of the losses: the largest counts most.

    Args:
        mu: of the smoothing; towards 0, the largest loss alone counts.
        ideal: what each loss could reach at best.

    Raises:
        ValueError: `mu` is not above 0.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["stch"]()
        >>> gradients = jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
        >>> update, _ = tx.update(gradients, tx.init(jnp.zeros(3)), task_losses=jnp.array([1.0, 1.0]))
        >>> update.tolist()
        [0.5, 0.5, 0.5]

    References:
        Lin, Zhang, Yang, Liu, Wang, Zhang, "Smooth Tchebycheff Scalarization for Multi-Objective Optimization", 2024.
    """
    if mu <= 0:
        raise ValueError(f"expected mu above 0, found {mu}")
    return by_losses(
        "stch", lambda losses, state: Decision(loss_weights.stch_weights(losses, mu=mu, ideal=ideal), state)
    )


def dtp(gamma: float = 1.0, decay: float = 0.9, max_tasks: int = CAPACITY) -> optax.GradientTransformationExtraArgs:
    """Weighs hard tasks more: by the focal weight of a performance between 0 and 1.

    The performance is a running mean of exp(-loss), which for a cross-entropy is the mean probability of the truth.

    Args:
        gamma: of the focus.
        decay: share of the past in the running mean.
        max_tasks: that the state has room for.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["dtp"](gamma=0.0)
        >>> gradients = jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
        >>> update, _ = tx.update(gradients, tx.init(jnp.zeros(3)), task_losses=jnp.array([1.0, 2.0]))
        >>> [round(x, 4) for x in update.tolist()]
        [8.0, 3.0, 3.0]

    References:
        Guo, Haque, Huang, Yeung, Fei-Fei, "Dynamic Task Prioritization for Multitask Learning", 2018.
    """

    def decide(losses: Array, state: tuple[Array, Array]) -> Decision:
        is_started, mean = state
        performance_now = jnp.exp(-losses)
        performance = jnp.where(
            is_started, decay * first_rows(mean, losses.shape[0]) + (1 - decay) * performance_now, performance_now
        )
        weights = loss_weights.dtp_weights(performance, gamma=gamma)
        return Decision(weights, (jnp.ones((), bool), with_first_rows(mean, performance)))

    return by_losses("dtp", decide, lambda: (jnp.zeros((), bool), jnp.zeros(max_tasks)))
