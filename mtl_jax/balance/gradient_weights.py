"""Task weights from the Gramian of the task gradients, whose entry (i, j) is the inner product of i and j."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from mtl_jax.balance import solvers
from mtl_jax.balance.projection_weights import dual_proj_weights as dual_proj_weights
from mtl_jax.balance.projection_weights import gradvac_weights as gradvac_weights
from mtl_jax.balance.projection_weights import pcgrad_weights as pcgrad_weights
from mtl_jax.balance.projection_weights import upgrad_weights as upgrad_weights
from mtl_jax.balance.solvers import Solution

# In units of the longest gradient: what is shorter is rounding noise.
SMALLEST_LENGTH = 1e-6
STATIONARY_LENGTH = 1e-4


def sum_weights(gramian: Float[Array, "tasks tasks"]) -> Float[Array, "tasks"]:
    """One for every task.

    Args:
        gramian: inner products of the tasks' gradients; only its size is used.

    Returns:
        Weights of the tasks.
    """
    return jnp.ones_like(gramian, shape=gramian.shape[:1])


def mgda_weights(gramian: Float[Array, "tasks tasks"]) -> Solution:
    """Multiple-gradient descent: the shortest convex combination of the gradients.

    It is the least of x @ gramian @ x / 2 - sum(x) over x >= 0, brought to sum 1: there all tasks with a weight are
    served alike, and the others more.

    Args:
        gramian: inner products of the tasks' gradients.

    Returns:
        Weights of the tasks, of sum 1, and the gap of the worst-served task to the weighted mean, in units of the
        weighted mean of the squared lengths.

    References:
        Désidéri, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization", 2012.
        Sener, Koltun, "Multi-Task Learning as Multi-Objective Optimization", 2018.
    """
    cosines, lengths = solvers.unit_rows(gramian)
    vanished = lengths == 0
    shortest = jnp.min(jnp.where(vanished, jnp.inf, lengths), initial=jnp.inf)
    # In units of the shortest gradient: long ones hardly matter, and rounding must not make them.
    shares = jnp.where(vanished, 0.0, shortest / jnp.where(vanished, 1.0, lengths))
    solution, _ = solvers.nonnegative_least(cosines, shares)
    weights = jnp.where(vanished.any(), vanished, solution * shares)  # a zero gradient is the shortest there is
    weights = weights / weights.sum()
    served, squared = gramian @ weights, weights @ lengths**2
    return Solution(weights, (weights @ served - served.min()) / jnp.where(squared > 0, squared, 1.0))


def cagrad_weights(gramian: Float[Array, "tasks tasks"], *, c: float) -> Solution:
    """Conflict-averse descent: within a ball around the mean gradient, the direction whose worst task gains most.

    Args:
        gramian: inner products of the tasks' gradients.
        c: radius of the ball, as a share of the mean gradient's length; 0 is the mean.

    Returns:
        Weights of the tasks, and the gap of the worst task to its share of the optimum. Where a convex combination of
        the gradients vanishes, the worst task gains nothing at best; if the ball holds a direction that opposes none,
        it is the nearest to the mean.

    References:
        Liu, Liu, Jin, Stone, Liu, "Conflict-Averse Gradient Descent for Multi-task Learning", 2021.
    """
    tasks = gramian.shape[0]
    gramian, _ = solvers.scaled(gramian)
    with_mean = gramian.sum(axis=1) / tasks
    radius = c * jnp.sqrt(jnp.maximum(with_mean.sum() / tasks, 0.0))

    def length(weights: Float[Array, "tasks"]) -> Float[Array, ""]:
        return jnp.sqrt(jnp.maximum(weights @ gramian @ weights, 0.0) + SMALLEST_LENGTH**2)

    def value(weights: Float[Array, "tasks"]) -> Float[Array, ""]:
        return with_mean @ weights + radius * length(weights)

    scale = jnp.abs(with_mean).max() + radius + SMALLEST_LENGTH
    weights = solvers.newton_on_simplex(value, tasks, scale=scale)
    slope = jax.grad(value)(weights)
    nearest, slack = solvers.least_norm_above(gramian, jnp.full((tasks,), 1.0 / tasks))
    shortest = mgda_weights(gramian).weights
    vanishes = length(shortest) < STATIONARY_LENGTH * (shortest @ jnp.sqrt(jnp.diagonal(gramian))) + SMALLEST_LENGTH
    stationary = vanishes & (length(nearest - 1.0 / tasks) <= radius + SMALLEST_LENGTH)
    gap = (weights @ slope - slope.min()) / scale
    combined = 1.0 / tasks + radius / length(weights) * weights
    return Solution(jnp.where(stationary, nearest, combined), jnp.where(stationary, slack, gap))


def nash_mtl_weights(gramian: Float[Array, "tasks tasks"], *, max_norm: float) -> Solution:
    """Nash bargaining: every task's gain, times its weight, is the same.

    The weights solve gramian @ weights = 1 / weights, of the Gramian divided by its Frobenius norm.

    Args:
        gramian: inner products of the tasks' gradients.
        max_norm: longest combined gradient; longer ones are shortened to it. 0 shortens none.

    Returns:
        Weights of the tasks, and the largest relative error of that equation.

    References:
        Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik, Fetaya, "Multi-Task Learning as a Bargaining Game", 2022.
    """
    weights, residual = fairgrad_weights(gramian, alpha=1.0)
    weights = weights * jnp.sqrt(jnp.linalg.norm(gramian))
    length = jnp.sqrt(jnp.maximum(weights @ gramian @ weights, 0.0))
    shortened = jnp.minimum(1.0, max_norm / jnp.where(length > 0, length, 1.0)) if max_norm else 1.0
    return Solution(weights * shortened, residual)


def fairgrad_weights(gramian: Float[Array, "tasks tasks"], *, alpha: float) -> Solution:
    """Alpha-fair gains: the weights solve gramian @ weights = weights ** (-1 / alpha).

    It is the optimum of a convex function, which is minimised in units of the gradients' lengths.

    Args:
        gramian: inner products of the tasks' gradients.
        alpha: of the fairness: 1 is proportional fairness, infinity would be the fairness of the least gain.

    Returns:
        Weights of the tasks, 0 for a zero gradient, and the largest relative error of that equation.

    References:
        Ban, Ji, "Fair Resource Allocation in Multi-Task Learning", 2024.
    """
    gramian, divisor = solvers.scaled(gramian)
    lengths = jnp.sqrt(jnp.diagonal(gramian))
    is_nonzero = lengths > 0
    inverse = jnp.where(is_nonzero, 1.0 / jnp.where(is_nonzero, lengths, 1.0), 0.0)
    cosines = gramian * inverse[:, None] * inverse[None, :]
    cosines = cosines + jnp.diag(jnp.where(is_nonzero, solvers.RIDGE, 1.0))
    gains = jnp.where(is_nonzero, jnp.where(is_nonzero, lengths, 1.0) ** (1.0 / alpha - 1.0), 1.0)

    def value(scaled: Float[Array, "tasks"]) -> Float[Array, ""]:
        power = 1.0 - 1.0 / alpha
        utility = jnp.log(scaled) if power == 0 else scaled**power / power
        return 0.5 * scaled @ cosines @ scaled - gains @ utility

    scaled = solvers.newton_on_positive(value, jnp.ones_like(lengths))
    error = jnp.abs((cosines @ scaled) / (gains * scaled ** (-1.0 / alpha)) - 1.0)
    weights = scaled * inverse * divisor ** (-alpha / (alpha + 1.0))
    return Solution(weights, jnp.where(is_nonzero, error, 0.0).max())


def imtl_g_weights(gramian: Float[Array, "tasks tasks"]) -> Float[Array, "tasks"]:
    """Impartial learning: the combined gradient has the same projection on every task's; the weights add up to 1.

    Dependent gradients are met by the pseudo-inverse; where the sum vanishes, so do the weights.

    Args:
        gramian: inner products of the tasks' gradients.

    Returns:
        Weights of the tasks.

    References:
        Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang, "Towards Impartial Multi-task Learning", 2021.
    """
    cosines, lengths = solvers.unit_rows(gramian)
    shortest = jnp.where(lengths.min() > 0, lengths.min(), 1.0)
    by_cosines = shortest / jnp.where(lengths > 0, lengths, 1.0) * (_pseudo_inverse(cosines) @ jnp.ones_like(lengths))
    values = jnp.linalg.eigvalsh(cosines)
    independent = values.min() > _noise(gramian) * values.max()
    # Only the cosines show short gradients next to long ones, and only as long as all are independent.
    scaled, _ = solvers.scaled(gramian)
    weights = jnp.where(independent, by_cosines, _pseudo_inverse(scaled) @ jnp.sqrt(jnp.diagonal(scaled)))
    total = weights.sum()
    vanishes = jnp.abs(total) < SMALLEST_LENGTH
    return jnp.where(vanishes, 0.0, weights / jnp.where(vanishes, 1.0, total))


def aligned_mtl_weights(gramian: Float[Array, "tasks tasks"]) -> Float[Array, "tasks"]:
    """Aligns the principal components of the gradients: all get the length of the shortest, and their mean is taken.

    Args:
        gramian: inner products of the tasks' gradients.

    Returns:
        Weights of the tasks.

    References:
        Senushkin, Patakin, Kuznetsov, Konushin, "Independent Component Alignment for Multi-Task Learning", 2023.
    """
    tasks = gramian.shape[0]
    values, vectors = jnp.linalg.eigh(gramian)
    is_kept = values > _noise(gramian) * values.max()
    shortest = jnp.min(jnp.where(is_kept, values, jnp.inf), initial=jnp.inf)
    stretch = jnp.where(is_kept, jnp.sqrt(shortest / jnp.where(is_kept, values, 1.0)), 0.0)
    return (vectors * stretch[None, :]) @ (vectors.T @ jnp.full((tasks,), 1.0 / tasks))


def config_weights(gramian: Float[Array, "tasks tasks"]) -> Float[Array, "tasks"]:
    """Conflict-free: the direction of equal cosine with every task's gradient, as long as the tasks' projections on it.

    Args:
        gramian: inner products of the tasks' gradients.

    Returns:
        Weights of the tasks; zero where the gradients leave no such direction.

    References:
        Liu, Chu, Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks", 2024.
    """
    cosines, lengths = solvers.unit_rows(gramian)
    in_units = _pseudo_inverse(cosines) @ jnp.ones_like(lengths)
    length = jnp.sqrt(jnp.maximum(in_units @ cosines @ in_units, 0.0))
    vanishes = length < STATIONARY_LENGTH
    direction = in_units * solvers.inverse(lengths) / jnp.where(vanishes, 1.0, length)
    return jnp.where(vanishes, 0.0, (gramian @ direction).sum() * direction)


def random_weights(tasks: int, *, key: PRNGKeyArray) -> Float[Array, "tasks"]:
    """Random weights of sum 1: the softmax of normal numbers.

    References:
        Lin, Ye, Zhang, Tsang, "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning",
        2022.
    """
    return jax.nn.softmax(jax.random.normal(key, (tasks,)))


def sdmgrad_weights(
    products: Float[Array, "tasks tasks"],
    weights: Float[Array, "tasks"],
    *,
    regularisation: float,
    learning_rate: float,
    momentum: float,
    iterations: int,
) -> tuple[Float[Array, "tasks"], Float[Array, "tasks"]]:
    """Direction-oriented multi-objective descent: the shortest combination when the mean gradient is mixed in.

    Args:
        products: inner products of the tasks' gradients, in units of whose mean length the problem is solved.
        weights: of sum 1, where the search begins: those of the step before.
        regularisation: share of the mean gradient (lambda).
        learning_rate: of the projected gradient steps.
        momentum: of the same.
        iterations: number of them.

    Returns:
        Weights of the tasks, of sum 1, and where the search ended.

    References:
        Xiao, Ban, Ji, "Direction-oriented Multi-objective Learning: Simple and Provable Stochastic Algorithms", 2023.
    """
    tasks = products.shape[0]
    preferred = jnp.full((tasks,), 1.0 / tasks)
    unit = jnp.sqrt(jnp.maximum(jnp.diagonal(products), 0.0)).mean()
    products = products / jnp.where(unit > 0, unit**2, 1.0)

    def iterate(_: Array, carry: tuple[Float[Array, "tasks"], Float[Array, "tasks"]]):
        weights, velocity = carry
        velocity = momentum * velocity + products @ (weights + regularisation * preferred)
        return solvers.project_to_simplex(weights - learning_rate * velocity), velocity

    weights, _ = jax.lax.fori_loop(0, iterations, iterate, (weights, jnp.zeros_like(weights)))
    return (weights + regularisation * preferred) / (1.0 + regularisation), weights


def _noise(gramian: Float[Array, "tasks tasks"]) -> float:
    """Share of the largest eigenvalue that rounding alone may give to an eigenvalue of zero."""
    return 4 * gramian.shape[0] * float(jnp.finfo(gramian.dtype).eps)


def _pseudo_inverse(gramian: Float[Array, "tasks tasks"]) -> Float[Array, "tasks tasks"]:
    return jnp.linalg.pinv(gramian, rtol=_noise(gramian), hermitian=True)
