"""Balancing methods that learn the weights of the tasks' losses step by step, as Optax transforms to one update.

`gradnorm` looks at the lengths of the gradients too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from mtl_jax.balance import loss_weights
from mtl_jax.balance.transform import (
    CAPACITY,
    Decision,
    by_gramian,
    by_losses,
    check_capacity,
    first_rows,
    required,
    with_first_rows,
)


def uncertainty(learning_rate: float = 0.01, max_tasks: int = CAPACITY) -> optax.GradientTransformationExtraArgs:
    """Divides each loss by twice a variance, learnt by Adam, which the loss's own size makes grow or shrink.

    Args:
        learning_rate: of the log-variances.
        max_tasks: that the state has room for.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["uncertainty"]()
        >>> gradients = jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
        >>> update, _ = tx.update(gradients, tx.init(jnp.zeros(3)), task_losses=jnp.array([1.0, 2.0]))
        >>> update.tolist()
        [1.0, 1.0, 1.0]

    References:
        Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
        Semantics", 2018.
    """

    def weights(log_variances: Array) -> Array:
        return 0.5 * jnp.exp(-log_variances)

    return _learnt_weights("uncertainty", weights, loss_weights.uncertainty_objective, learning_rate, max_tasks)


def imtl_l(learning_rate: float = 0.01, max_tasks: int = CAPACITY) -> optax.GradientTransformationExtraArgs:
    """Multiplies each loss by a scale, learnt by Adam, that brings all losses to the same size.

    Args:
        learning_rate: of the log-scales.
        max_tasks: that the state has room for.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["imtl_l"]()
        >>> gradients = jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
        >>> update, _ = tx.update(gradients, tx.init(jnp.zeros(3)), task_losses=jnp.array([1.0, 2.0]))
        >>> update.tolist()
        [2.0, 2.0, 2.0]

    References:
        Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang, "Towards Impartial Multi-task Learning", 2021 (IMTL-L).
    """
    return _learnt_weights("imtl_l", jnp.exp, loss_weights.imtl_l_objective, learning_rate, max_tasks)


def _learnt_weights(
    name: str,
    weights: Callable[[Array], Array],
    objective: Callable[[Array, Array], Array],
    learning_rate: float,
    max_tasks: int,
) -> optax.GradientTransformationExtraArgs:
    """A method whose weights come from one number per task, which its objective teaches."""
    teacher = optax.adam(learning_rate)

    def decide(losses: Array, state: tuple[Array, Any]) -> Decision:
        check_capacity(losses.shape[0], max_tasks)
        padded_losses = jnp.zeros(max_tasks).at[: losses.shape[0]].set(losses)
        is_task = jnp.arange(max_tasks) < losses.shape[0]
        slope = jnp.where(is_task, jax.grad(objective)(state[0], padded_losses), 0.0)
        change, teacher_state = teacher.update(slope, state[1])
        after = (optax.apply_updates(state[0], change), teacher_state)
        return Decision(weights(state[0][: losses.shape[0]]), after)

    def init() -> tuple[Array, Any]:
        numbers = jnp.zeros(max_tasks)
        return numbers, teacher.init(numbers)

    return by_losses(name, decide, init)


def famo(
    learning_rate: float = 0.025, weight_decay: float = 1e-3, max_tasks: int = CAPACITY
) -> optax.GradientTransformationExtraArgs:
    """Lets the logarithms of all losses fall alike: tasks that fell less from one step to the next weigh more.

    The published method measures the fall on the same batch before and after a step; here the next step's losses are
    the later ones, which costs no further forward pass.

    Args:
        learning_rate: of the logits, which Adam moves.
        weight_decay: of the logits.
        max_tasks: that the state has room for.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["famo"]()
        >>> gradients = jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
        >>> update, _ = tx.update(gradients, tx.init(jnp.zeros(3)), task_losses=jnp.array([1.0, 1.0]))
        >>> update.tolist()
        [1.0, 1.0, 1.0]

    References:
        Liu, Feng, Stone, Liu, "FAMO: Fast Adaptive Multitask Optimization", 2023.
    """
    teacher = optax.adam(learning_rate)

    def decide(losses: Array, state: tuple[Array, Array, Array, Any]) -> Decision:
        is_started, logits, before, teacher_state = state
        tasks = losses.shape[0]
        slope = loss_weights.famo_logit_gradient(first_rows(logits, tasks), first_rows(before, tasks), losses)
        slope = with_first_rows(weight_decay * logits, slope + weight_decay * logits[:tasks])
        change, new_teacher_state = teacher.update(slope, teacher_state)
        keep = lambda new, old: jnp.where(is_started, new, old)  # noqa: E731
        logits = keep(optax.apply_updates(logits, change), logits)
        teacher_state = jax.tree.map(keep, new_teacher_state, teacher_state)
        weights = loss_weights.famo_weights(logits[:tasks], losses)
        return Decision(weights, (jnp.ones((), bool), logits, with_first_rows(before, losses), teacher_state))

    def init() -> tuple[Array, Array, Array, Any]:
        logits = jnp.zeros(max_tasks)
        return jnp.zeros((), bool), logits, jnp.zeros(max_tasks), teacher.init(logits)

    return by_losses("famo", decide, init)


def gradnorm(
    alpha: float = 1.5,
    learning_rate: float = 0.025,
    momentum: float = 0.9,
    min_weight: float = 0.001,
    max_weight: float = 10.0,
    max_tasks: int = CAPACITY,
) -> optax.GradientTransformationExtraArgs:
    """Learns task weights under which tasks that train slowly have the longer gradients.

    The lengths are those of the gradients of all shared parameters. The weights begin at 1, and their sum is always
    the number of tasks.

    Args:
        alpha: how strongly slow tasks are helped; 0 gives all gradients one length.
        learning_rate: of the weights.
        momentum: share of the past in the running average of the weights' gradient.
        min_weight: no weight falls below it before the weights are brought to their sum.
        max_weight: none rises above it.
        max_tasks: that the state has room for.

    Raises:
        ValueError: at the update, if `task_losses` is missing.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["gradnorm"]()
        >>> gradients = jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
        >>> update, _ = tx.update(gradients, tx.init(jnp.zeros(3)), task_losses=jnp.array([1.0, 2.0]))
        >>> update.tolist()
        [2.0, 2.0, 2.0]

    References:
        Chen, Badrinarayanan, Lee, Rabinovich, "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
        Multitask Networks", 2018.
    """

    def decide(products: Array, state: tuple[Array, Array, Array, Array], losses: Array | None) -> Decision:
        losses = required("gradnorm", losses)
        is_started, all_weights, all_first, all_velocity = state
        tasks = losses.shape[0]
        weights, velocity = first_rows(all_weights, tasks), first_rows(all_velocity, tasks)
        first = jnp.where(is_started, first_rows(all_first, tasks), losses)
        lengths = jnp.sqrt(jnp.diagonal(products))
        slope = jax.grad(loss_weights.gradnorm_objective)(weights, lengths, losses, first, alpha=alpha)
        velocity = momentum * velocity + (1.0 - momentum) * slope
        new_weights = jnp.clip(weights - learning_rate * velocity, min_weight, max_weight)
        new_weights = new_weights * tasks / new_weights.sum()
        after = (
            jnp.ones((), bool),
            with_first_rows(all_weights, new_weights),
            with_first_rows(all_first, first),
            with_first_rows(all_velocity, velocity),
        )
        return Decision(weights, after)

    def init() -> tuple[Array, Array, Array, Array]:
        return jnp.zeros((), bool), jnp.ones(max_tasks), jnp.zeros(max_tasks), jnp.zeros(max_tasks)

    return by_gramian(decide, init)
