"""Task weights of methods that project gradients onto directions without conflict, from their Gramian."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mtl_jax.balance import solvers
from mtl_jax.balance.solvers import Solution


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
        def against(coefficients: Float[Array, "tasks"], other_task: Int[Array, ""]):
            inner = coefficients @ gramian[:, other_task]
            length = gramian[other_task, other_task]
            conflict = (inner < 0) & (other_task != task) & (length > 0)
            # The inner where keeps a zero gradient from dividing by zero.
            coefficient = jnp.where(conflict, inner / jnp.where(length > 0, length, 1.0), 0.0)
            return coefficients.at[other_task].add(-coefficient), None

        start = jnp.zeros_like(gramian, shape=(tasks,)).at[task].set(1.0)
        return jax.lax.scan(against, start, order)[0]

    # Sorting noise is a random permutation, and compiles in a fraction of the time of jax.random.permutation.
    orders = jnp.argsort(jax.random.uniform(key, (tasks, tasks)), axis=1)
    return jax.vmap(project)(jnp.arange(tasks), orders).sum(axis=0)


def gradvac_weights(
    gramian: Float[Array, "tasks tasks"],
    targets: Float[Array, "tasks tasks"],
    *,
    key: PRNGKeyArray,
    beta: float,
) -> tuple[Float[Array, " tasks"], Float[Array, "tasks tasks"]]:
    """Gradient vaccine: each gradient is turned towards the others until the cosines reach their running averages.

    As `pcgrad_weights`, whose target is always zero, on coefficients alone.

    Args:
        gramian: inner products of the tasks' gradients.
        targets: running average of the cosine of each (turned) gradient with each other; zero at first.
        key: draws the order of the others, one for each task.
        beta: share of the present cosine in the average.

    Returns:
        Weights of the tasks, and the new averages.

    References:
        Wang, Tsvetkov, Firat, Cao, "Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively
        Multilingual Models", 2021.
    """
    tasks = gramian.shape[0]
    lengths = jnp.sqrt(jnp.diagonal(gramian))

    def turn(task: Int[Array, ""], order: Int[Array, "tasks"], target: Float[Array, "tasks"]):
        def towards(carry: tuple[Float[Array, "tasks"], Float[Array, "tasks"]], other_task: Int[Array, ""]):
            coefficients, target = carry
            length = jnp.sqrt(jnp.maximum(coefficients @ gramian @ coefficients, 0.0))
            product = length * lengths[other_task]
            cosine = jnp.where(
                product > 0, (coefficients @ gramian[:, other_task]) / jnp.where(product > 0, product, 1.0), 0
            )
            cosine = jnp.clip(cosine, -1.0, 1.0)
            target_cosine, sine = target[other_task], jnp.sqrt(1.0 - cosine**2)
            wanted_sine = jnp.sqrt(jnp.maximum(1.0 - target_cosine**2, 0.0))
            divisor = lengths[other_task] * wanted_sine
            rotation = length * (target_cosine * sine - cosine * wanted_sine) / jnp.where(divisor > 0, divisor, 1.0)
            is_positive = (other_task != task) & (product > 0)
            coefficient = jnp.where(is_positive & (cosine < target_cosine) & (divisor > 0), rotation, 0.0)
            average = jnp.where(is_positive, (1.0 - beta) * target_cosine + beta * cosine, target_cosine)
            return (coefficients.at[other_task].add(coefficient), target.at[other_task].set(average)), None

        start = jnp.zeros_like(gramian, shape=(tasks,)).at[task].set(1.0)
        return jax.lax.scan(towards, (start, target), order)[0]

    orders = jnp.argsort(jax.random.uniform(key, (tasks, tasks)), axis=1)
    coefficients, targets = jax.vmap(turn)(jnp.arange(tasks), orders, targets)
    return coefficients.sum(axis=0), targets


def upgrad_weights(gramian: Float[Array, "tasks tasks"], *, regularisation: float) -> Solution:
    """Projects every task's gradient onto the dual cone, where it opposes none, and averages them.

    Args:
        gramian: inner products of the tasks' gradients.
        regularisation: added to its diagonal, as a share of its trace.

    Returns:
        Weights of the tasks, and the largest residual of the projections.

    References:
        Quinton, Rey, "Jacobian Descent for Multi-Objective Optimization", 2024.
    """
    tasks = gramian.shape[0]
    gramian = _regularised(gramian, regularisation)
    solutions = jax.vmap(lambda lower: solvers.least_norm_above(gramian, lower))(jnp.eye(tasks) / tasks)
    return Solution(solutions.weights.sum(axis=0), solutions.residual.max())


def dual_proj_weights(gramian: Float[Array, "tasks tasks"], *, regularisation: float) -> Solution:
    """Projects the mean gradient onto the dual cone, where it opposes no task's.

    Args:
        gramian: inner products of the tasks' gradients.
        regularisation: added to its diagonal, as a share of its trace.

    Returns:
        Weights of the tasks, and the residual of the projection.

    References:
        Lopez-Paz, Ranzato, "Gradient Episodic Memory for Continual Learning", 2017 (equation 11).
    """
    tasks = gramian.shape[0]
    return solvers.least_norm_above(_regularised(gramian, regularisation), jnp.full((tasks,), 1.0 / tasks))


def _regularised(gramian: Float[Array, "tasks tasks"], share: float) -> Float[Array, "tasks tasks"]:
    return gramian + share * jnp.trace(gramian) * jnp.eye(gramian.shape[0])
