"""The small optimisation problems behind the balancing methods, solved inside jit at a fixed number of iterations.

They are written in the Gramian of the task gradients, so their size is the number of tasks. Every solver returns its
residual: how far its solution is from satisfying the optimality conditions, relative to the problem's own scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

NEWTON_ITERATIONS = 50
STEP_HALVINGS = 24  # step sizes tried in one Newton iteration: 1, 1/2, 1/4, …
BARRIER_START, BARRIER_SHRINKING, BARRIER_END = 0.1, 0.7, 1e-8  # of the logarithmic barrier
RIDGE = 1e-6  # of the longest gradient's squared length: keeps dependent gradients solvable in float32


class Solution(NamedTuple):
    """What a solver found."""

    weights: Float[Array, " tasks"]
    residual: Float[Array, ""]  # relative; 0 at the exact optimum


def scaled(gramian: Float[Array, "tasks tasks"]) -> tuple[Float[Array, "tasks tasks"], Float[Array, ""]]:
    """Divides a Gramian by its largest squared length, and returns that too; zero gradients stay zero."""
    largest = jnp.max(jnp.diagonal(gramian))
    divisor = jnp.where(largest > 0, largest, 1.0)
    return gramian / divisor, divisor


def least_norm_above(gramian: Float[Array, "tasks tasks"], lower: Float[Array, " tasks"]) -> Solution:
    """The weights of the shortest combined gradient among those that are nowhere below `lower`.

    Equivalently, the projection of the gradient combined with `lower` onto the dual cone of the gradients: the vectors
    that oppose none of them.

    Args:
        gramian: inner products of the tasks' gradients.
        lower: the least weight of each task.

    References:
        Quinton, Rey, "Jacobian Descent for Multi-Objective Optimization", 2024 (the projection in weights).
    """
    cosines, lengths = unit_rows(gramian)
    above, residual = nonnegative_least(cosines, -(cosines @ (lengths * lower)))
    return Solution(lower + inverse(lengths) * above, residual)


def unit_rows(gramian: Float[Array, "tasks tasks"]) -> tuple[Float[Array, "tasks tasks"], Float[Array, " tasks"]]:
    """The Gramian of the gradients at unit length, and their lengths; zero gradients stay zero.

    In these units rounding does not hide short gradients next to long ones.
    """
    lengths = jnp.sqrt(jnp.maximum(jnp.diagonal(gramian), 0.0))
    shrink = inverse(lengths)
    return gramian * shrink[:, None] * shrink[None, :], lengths


def inverse(lengths: Float[Array, " tasks"]) -> Float[Array, " tasks"]:
    """1 / length; 0 for a zero gradient."""
    return jnp.where(lengths > 0, 1.0 / jnp.where(lengths > 0, lengths, 1.0), 0.0)


def nonnegative_least(matrix: Float[Array, "tasks tasks"], target: Float[Array, " tasks"]) -> Solution:
    """Minimises x @ matrix @ x / 2 - target @ x over x >= 0.

    An active-set method: bounds are released one at a time, and the problem on the released ones is solved exactly.

    Args:
        matrix: positive semidefinite, of entries about 1.
        target: the slope at zero, negated.

    References:
        Lawson, Hanson, "Solving Least Squares Problems", 1974 (chapter 23).
    """
    tasks = matrix.shape[0]
    scale = jnp.maximum(jnp.abs(target).max(), jnp.finfo(matrix.dtype).tiny)
    noise = 8 * jnp.finfo(matrix.dtype).eps * scale

    def iterate(_: Array, carry: tuple[Float[Array, " tasks"], Bool[Array, " tasks"]]):
        solution, released = carry
        candidate = _solve_on(matrix, target, released)
        blocked = released & (candidate <= 0)
        ratio = jnp.where(blocked, solution / jnp.where(blocked, solution - candidate, 1.0), 1.0)
        step = jnp.min(jnp.clip(ratio, 0.0, 1.0))
        iterate_next = jnp.where(released, solution + step * (candidate - solution), 0.0)
        stuck = blocked & (ratio <= step)
        slope = matrix @ iterate_next - target
        steepest = jnp.argmin(jnp.where(released, jnp.inf, slope))
        release = ~blocked.any() & (jnp.where(released, jnp.inf, slope)[steepest] < -noise)
        released = (released & ~stuck) | (release & (jnp.arange(tasks) == steepest))
        return jnp.where(stuck, 0.0, iterate_next), released

    start = (jnp.zeros_like(target), jnp.zeros(tasks, bool))
    solution, released = jax.lax.fori_loop(0, 4 * tasks, iterate, start)
    solution = jnp.maximum(jnp.where(released, solution, 0.0), 0.0)
    slope = matrix @ solution - target
    residual = jnp.maximum(jnp.max(-slope), jnp.max(jnp.minimum(jnp.abs(slope), solution))) / scale
    return Solution(solution, residual)


def _solve_on(
    matrix: Float[Array, "tasks tasks"], target: Float[Array, " tasks"], is_selected: Bool[Array, " tasks"]
) -> Float[Array, " tasks"]:
    """Solves matrix @ x = target in the chosen rows and columns, refined twice; 0 elsewhere."""
    is_block = is_selected[:, None] & is_selected[None, :]
    reduced = jnp.where(is_block, matrix, 0.0)
    factor = jax.scipy.linalg.cho_factor(reduced + jnp.diag(jnp.where(is_selected, RIDGE, 1.0)))
    solution = jnp.zeros_like(target)
    for _ in range(3):  # each pass divides the ridge's error once more
        error = jnp.where(is_selected, target - reduced @ solution, 0.0)
        solution = solution + jax.scipy.linalg.cho_solve(factor, error)
    return solution


def project_to_simplex(weights: Float[Array, " tasks"]) -> Float[Array, " tasks"]:
    """The nearest nonnegative weights of sum 1.

    References:
        Duchi, Shalev-Shwartz, Singer, Chandra, "Efficient Projections onto the l1-Ball for Learning in High
        Dimensions", 2008.
    """
    descending = jnp.sort(weights)[::-1]
    count = jnp.arange(1, weights.shape[0] + 1)
    excess = (jnp.cumsum(descending) - 1.0) / count
    last = jnp.sum(descending > excess) - 1
    return jnp.maximum(weights - excess[last], 0.0)


def newton_on_positive(
    value: Callable[[Float[Array, " tasks"]], Float[Array, ""]],
    start: Float[Array, " tasks"],
    *,
    iterations: int = NEWTON_ITERATIONS,
) -> Float[Array, " tasks"]:
    """Minimises a convex function of positive weights by Newton steps, each of the best of some step sizes.

    Args:
        value: twice differentiable; infinite or NaN where it is not defined.
        start: positive weights.
        iterations: number of steps.
    """
    slope, curvature = jax.grad(value), jax.hessian(value)

    def iterate(_: Array, weights: Float[Array, " tasks"]) -> Float[Array, " tasks"]:
        return _line_search(value, weights, -jnp.linalg.solve(curvature(weights), slope(weights)))

    return jax.lax.fori_loop(0, iterations, iterate, start)


def newton_on_simplex(
    value: Callable[[Float[Array, " tasks"]], Float[Array, ""]],
    tasks: int,
    *,
    scale: Float[Array, ""],
    iterations: int = NEWTON_ITERATIONS,
) -> Float[Array, " tasks"]:
    """Minimises a convex function of nonnegative weights of sum 1 by Newton steps inside a shrinking log barrier.

    Args:
        value: twice differentiable inside the simplex.
        tasks: number of weights.
        scale: of the function's values, from which the barrier begins.
        iterations: number of steps.

    References:
        Boyd, Vandenberghe, "Convex Optimization", 2004 (section 11.3).
    """

    def iterate(number: Array, weights: Float[Array, " tasks"]) -> Float[Array, " tasks"]:
        height = scale / tasks * jnp.maximum(BARRIER_START * BARRIER_SHRINKING**number, BARRIER_END)

        def barred(weights: Float[Array, " tasks"]) -> Float[Array, ""]:
            return value(weights) - height * jnp.log(weights).sum()

        slope, curvature = jax.grad(barred)(weights), jax.hessian(barred)(weights)
        ones = jnp.ones((tasks, 1))
        conditions = jnp.block([[curvature / scale, ones], [ones.T, jnp.zeros((1, 1))]])  # the sum stays
        direction = jnp.linalg.solve(conditions, jnp.append(-slope / scale, 0.0))[:tasks]
        iterate_next = _line_search(barred, weights, direction)
        return iterate_next / iterate_next.sum()

    return jax.lax.fori_loop(0, iterations, iterate, jnp.full((tasks,), 1.0 / tasks))


def _line_search(
    value: Callable[[Float[Array, " tasks"]], Float[Array, ""]],
    weights: Float[Array, " tasks"],
    direction: Float[Array, " tasks"],
) -> Float[Array, " tasks"]:
    """The best of some steps along a direction that leave the weights positive.

    Where rounding hides the differences between them, near the optimum, the whole step is the best.
    """
    shrinking = direction < 0
    room = jnp.min(jnp.where(shrinking, -weights / jnp.where(shrinking, direction, 1.0), jnp.inf))
    sizes = jnp.minimum(1.0, 0.99 * room) * 0.5 ** jnp.arange(STEP_HALVINGS, dtype=weights.dtype)
    steps = jnp.concatenate([jnp.zeros(1, sizes.dtype), sizes])
    trials = weights[None, :] + steps[:, None] * direction[None, :]
    values = jax.vmap(value)(trials)
    values = jnp.where(jnp.isfinite(values), values, jnp.inf)
    noise = 4 * jnp.finfo(weights.dtype).eps * jnp.abs(values[0])
    best, full_step = jnp.argmin(values), jnp.asarray(1)
    indifferent = (values[best] > values[0] - noise) & (values[full_step] < values[0] + noise)
    return trials[jnp.where(indifferent, full_step, best)]
