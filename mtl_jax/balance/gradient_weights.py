"""Task weights from the Gramian of the task gradients, whose entry (i, j) is the inner product of i and j."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

# Two tasks need one move; nine dependent ones end within 1e-4 of the squared length of the longest gradient.
MGDA_MAX_ITERATIONS = 250


def sum_weights(gramian: Float[Array, "tasks tasks"]) -> Float[Array, "tasks"]:
    """One for every task.

    Args:
        gramian: inner products of the tasks' gradients; only its size is used.

    Returns:
        Weights of the tasks.
    """
    return jnp.ones_like(gramian, shape=gramian.shape[:1])


def mean_weights(gramian: Float[Array, "tasks tasks"]) -> Float[Array, "tasks"]:
    """An equal share for every task, of sum 1.

    Args:
        gramian: inner products of the tasks' gradients; only its size is used.

    Returns:
        Weights of the tasks.
    """
    return sum_weights(gramian) / gramian.shape[0]


def pcgrad_weights(gramian: Float[Array, "tasks tasks"], *, key: PRNGKeyArray) -> Float[Array, "tasks"]:
    """Projecting conflicting gradients: each gradient loses its part against the others, then all are added.

    A projected gradient stays a combination of the given ones, so that its coefficients and the Gramian say
    everything: no gradient is touched.

    Args:
        gramian: inner products of the tasks' gradients.
        key: draws the order of the projections, one for each task.

    Returns:
        Weights of the tasks.

    References:
        Yu, Kumar, Gupta, Levine, Hausman, Finn, "Gradient Surgery for Multi-Task Learning", 2020.
    """
    tasks = gramian.shape[0]

    def project(task: Int[Array, ""], order: Int[Array, "tasks"]) -> Float[Array, "tasks"]:
        def against(coefficients: Float[Array, "tasks"], other: Int[Array, ""]):
            inner = coefficients @ gramian[:, other]
            length = gramian[other, other]
            conflict = (inner < 0) & (other != task) & (length > 0)
            # The inner where keeps a zero gradient from dividing by zero.
            removed = jnp.where(conflict, inner / jnp.where(length > 0, length, 1.0), 0.0)
            return coefficients.at[other].add(-removed), None

        start = jnp.zeros_like(gramian, shape=(tasks,)).at[task].set(1.0)
        return jax.lax.scan(against, start, order)[0]

    # Sorting noise is a random permutation, and compiles in a fraction of the time of jax.random.permutation.
    orders = jnp.argsort(jax.random.uniform(key, (tasks, tasks)), axis=1)
    return jax.vmap(project)(jnp.arange(tasks), orders).sum(axis=0)


def mgda_weights(
    gramian: Float[Array, "tasks tasks"], *, max_iterations: int = MGDA_MAX_ITERATIONS
) -> Float[Array, "tasks"]:
    """Multiple-gradient descent: the weights of sum 1 whose combined gradient is the shortest.

    Pairwise Frank-Wolfe with exact line search: mass moves from the task that the combined gradient serves
    most to the one that it serves least. It does not depend on the gradients' scale and is exact after one
    move for two tasks. It stops early once the duality gap is rounding noise.

    Args:
        gramian: inner products of the tasks' gradients.
        max_iterations: bound on the moves.

    Returns:
        Weights of the tasks, nonnegative, of sum 1.

    References:
        Désidéri, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization", 2012.
        Lacoste-Julien, Jaggi, "On the Global Linear Convergence of Frank-Wolfe Optimization Variants", 2015.
    """
    lengths = jnp.diagonal(gramian)
    noise = jnp.finfo(gramian.dtype).eps

    def unfinished(carry: tuple[Int[Array, ""], Float[Array, "tasks"]]):
        iteration, weights = carry
        served = gramian @ weights
        gap = weights @ served - served.min()
        return (iteration < max_iterations) & (gap > noise * (weights @ lengths))

    def move(carry: tuple[Int[Array, ""], Float[Array, "tasks"]]):
        iteration, weights = carry
        served = gramian @ weights
        poorest = jnp.argmin(served)
        richest = jnp.argmax(jnp.where(weights > 0, served, -jnp.inf))
        curvature = lengths[poorest] + lengths[richest] - 2 * gramian[poorest, richest]
        wanted = (served[richest] - served[poorest]) / jnp.where(curvature > 0, curvature, 1.0)
        # Parallel gradients have no curvature: all the mass goes to the shorter.
        amount = jnp.where(curvature > 0, jnp.clip(wanted, 0.0, weights[richest]), weights[richest])
        return iteration + 1, weights.at[richest].add(-amount).at[poorest].add(amount)

    weights = jax.lax.while_loop(unfinished, move, (jnp.asarray(0), mean_weights(gramian)))[1]
    return weights / weights.sum()
