"""Task weights from the Gramian of the task gradients, whose entry (i, j) is the inner product of i and j."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mtl_jax.balance import solvers
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
