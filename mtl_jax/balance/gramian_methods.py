"""Balancing methods that need the inner products of the tasks' gradients, as Optax transforms to one update."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from mtl_jax.balance import gradient_weights
from mtl_jax.balance.transform import (
    CAPACITY,
    Decision,
    by_gramian,
    first_rows,
    required,
    with_first_rows,
)


def mgda(normalise: str = "none") -> optax.GradientTransformationExtraArgs:
    """Takes the shortest convex combination of the tasks' gradients: it descends on all tasks or is zero.

    Args:
        normalise: what the gradients are divided by before the weights are sought: "none", "l2" (their
            length) or "loss" (the task's loss). The weights are then applied to the gradients as given.

    Returns:
        A transform from task gradients to one update. With `normalise="loss"` its update needs `task_losses`.

    Raises:
        ValueError: if `normalise` is none of these; at the update, if `task_losses` is needed and missing.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.mgda()
        >>> update, _ = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> [abs(round(x, 4)) for x in update.tolist()]
        [0.0, 1.0, 1.0]

    References:
        Désidéri, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization", 2012.
        Sener, Koltun, "Multi-Task Learning as Multi-Objective Optimization", 2018 (the normalisations).
    """
    if normalise not in ("none", "l2", "loss"):
        raise ValueError(f'expected normalise to be "none", "l2" or "loss", found "{normalise}"')

    def decide(products: Array, state: tuple, losses: Array | None) -> Decision:
        if normalise == "loss":
            products = _rescaled(products, required('normalise="loss"', losses))
        elif normalise == "l2":
            products = _rescaled(products, jnp.sqrt(jnp.diagonal(products)))
        weights, residual = gradient_weights.mgda_weights(products)
        return Decision(weights, state, residual)

    return by_gramian(decide)


def _rescaled(products: Float[Array, "tasks tasks"], scale: Float[Array, "tasks"]) -> Array:
    """The Gramian of the gradients divided by `scale`; a scale of zero divides nothing."""
    scale = jnp.where(scale > 0, scale, 1.0)
    return products / scale[:, None] / scale[None, :]


def cagrad(c: float = 0.5) -> optax.GradientTransformationExtraArgs:
    """Takes, near the mean gradient, the direction whose worst-served task gains most.

    Args:
        c: how far from the mean, as a share of its length; 0 is the mean.

    Raises:
        ValueError: `c` is negative.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["cagrad"]()
        >>> update, _ = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> [round(x, 3) for x in update.tolist()]
        [0.184, 1.204, 1.204]

    References:
        Liu, Liu, Jin, Stone, Liu, "Conflict-Averse Gradient Descent for Multi-task Learning", 2021.
    """
    if c < 0:
        raise ValueError(f"expected c >= 0, found {c}")

    def decide(products: Array, state: tuple, losses: Array | None) -> Decision:
        del losses
        weights, residual = gradient_weights.cagrad_weights(products, c=c)
        return Decision(weights, state, residual)

    return by_gramian(decide)


def nash_mtl(max_norm: float = 1.0) -> optax.GradientTransformationExtraArgs:
    """Takes the bargaining solution: every task's gain, times its weight, is the same.

    It is solved at every step to the end; the state keeps the residual, which shows where no solution exists.

    Args:
        max_norm: longest update; a longer one is shortened to it. 0 shortens none.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["nash_mtl"]()
        >>> update, _ = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> [round(x, 4) for x in update.tolist()]
        [0.0542, 0.7061, 0.7061]

    References:
        Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik, Fetaya, "Multi-Task Learning as a Bargaining Game", 2022.
    """

    def decide(products: Array, state: tuple, losses: Array | None) -> Decision:
        del losses
        weights, residual = gradient_weights.nash_mtl_weights(products, max_norm=max_norm)
        return Decision(weights, state, residual)

    return by_gramian(decide)


def fairgrad(alpha: float = 1.0) -> optax.GradientTransformationExtraArgs:
    """Takes the weights whose gains are alpha-fair.

    Args:
        alpha: of the fairness, above 0; larger cares more for the least gain.

    Raises:
        ValueError: `alpha` is not above 0.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["fairgrad"]()
        >>> update, _ = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> [round(x, 3) for x in update.tolist()]
        [0.077, 0.999, 0.999]

    References:
        Ban, Ji, "Fair Resource Allocation in Multi-Task Learning", 2024.
    """
    if alpha <= 0:
        raise ValueError(f"expected alpha above 0, found {alpha}")

    def decide(products: Array, state: tuple, losses: Array | None) -> Decision:
        del losses
        weights, residual = gradient_weights.fairgrad_weights(products, alpha=alpha)
        return Decision(weights, state, residual)

    return by_gramian(decide)


def imtl_g() -> optax.GradientTransformationExtraArgs:
    """Takes the combination of sum 1 whose projections on all tasks' gradients are equally long.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["imtl_g"]()
        >>> update, _ = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> [round(x, 4) for x in update.tolist()]
        [0.0767, 1.0, 1.0]

    References:
        Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang, "Towards Impartial Multi-task Learning", 2021 (IMTL-G).
    """
    return by_gramian(lambda products, state, losses: Decision(gradient_weights.imtl_g_weights(products), state))


def aligned_mtl() -> optax.GradientTransformationExtraArgs:
    """Gives all principal components of the gradients the length of the shortest, and averages the gradients.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["aligned_mtl"]()
        >>> update, _ = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> [round(x, 4) for x in update.tolist()]
        [0.2133, 0.9673, 0.9673]

    References:
        Senushkin, Patakin, Kuznetsov, Konushin, "Independent Component Alignment for Multi-Task Learning", 2023.
    """
    return by_gramian(lambda products, state, losses: Decision(gradient_weights.aligned_mtl_weights(products), state))


def config() -> optax.GradientTransformationExtraArgs:
    """Takes the direction of equal cosine with all tasks' gradients, as long as their projections on it together.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["config"]()
        >>> update, _ = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> [round(x, 4) for x in update.tolist()]
        [0.1588, 2.0706, 2.0706]

    References:
        Liu, Chu, Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks", 2024.
    """
    return by_gramian(lambda products, state, losses: Decision(gradient_weights.config_weights(products), state))


def sdmgrad(
    regularisation: float = 0.3,
    learning_rate: float = 10.0,
    momentum: float = 0.5,
    iterations: int = 20,
    max_tasks: int = CAPACITY,
) -> optax.GradientTransformationExtraArgs:
    """Seeks the shortest combination with the mean gradient mixed in, some steps at a time, from where it last was.

    The published method takes the inner products between two independent batches; one batch is used here.

    Args:
        regularisation: share of the mean gradient (lambda of the paper).
        learning_rate: of the search.
        momentum: of the search.
        iterations: of the search in one step.
        max_tasks: that the state has room for.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["sdmgrad"]()
        >>> _, state = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> round(float(state.task_weights.sum()), 4)
        1.0

    References:
        Xiao, Ban, Ji, "Direction-oriented Multi-objective Learning: Simple and Provable Stochastic Algorithms", 2023.
    """

    def decide(products: Array, state: tuple[Array, Array], losses: Array | None) -> Decision:
        del losses
        tasks = products.shape[0]
        is_started, last = state[0], first_rows(state[1], tasks)
        weights, solution = gradient_weights.sdmgrad_weights(
            products,
            jnp.where(is_started, last, 1.0 / tasks),
            regularisation=regularisation,
            learning_rate=learning_rate,
            momentum=momentum,
            iterations=iterations,
        )
        return Decision(weights, (jnp.ones((), bool), with_first_rows(state[1], solution)))

    return by_gramian(decide, lambda: (jnp.zeros((), bool), jnp.zeros(max_tasks)))
