"""Balancing methods that need the tasks' gradients themselves, as Optax transforms to one update."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from mtl_jax.balance import solvers
from mtl_jax.balance.transform import (
    CAPACITY,
    Decision,
    added,
    by_gradients,
    combine,
    first_rows,
    gradients_like,
    gramian,
    remembering,
    required,
    with_first_rows,
)

SMALLEST_LOSS = 1e-8  # below it, a loss's logarithm is not followed further
EXCESS_NOISE = 1e-7  # added to sums of squares before they divide


def graddrop(leak: float = 0.0, seed: int = 0) -> optax.GradientTransformationExtraArgs:
    """Keeps, in every coordinate, the gradients of one sign, drawn by how much of their mass has it, and adds them.

    Args:
        leak: share of every gradient that passes whatever the draw.
        seed: of the key in the state.

    Raises:
        ValueError: `leak` is not between 0 and 1.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["graddrop"]()
        >>> update, _ = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> update[1:].tolist(), float(update[0]) in (-4.0, 6.0)
        ([2.0, 2.0], True)

    References:
        Chen, Ngiam, Huang, Luong, Kretzschmar, Chai, Anguelov, "Just Pick a Sign: Optimizing Deep Multitask Models
        with Gradient Sign Dropout", 2020.
    """
    if not 0 <= leak <= 1:
        raise ValueError(f"expected leak from 0 to 1, found {leak}")

    def update(task_grads, key: Array, losses: Array | None):
        del losses
        leaves, structure = jax.tree.flatten(task_grads)
        next_key, *keys = jax.random.split(key, len(leaves) + 1)

        def drop(leaf: Array, key: Array) -> Array:
            wide = leaf.astype(jnp.float32)
            mass = added(jnp.abs(wide))
            positive_purity = 0.5 * (1.0 + added(wide) / jnp.where(mass > 0, mass, 1.0))
            positive = jax.random.uniform(key, mass.shape) < positive_purity
            is_kept = jnp.where(positive[None], wide > 0, wide < 0)
            total = added((leak + (1.0 - leak) * is_kept) * wide)
            return jnp.where(jnp.isfinite(mass), total, mass).astype(leaf.dtype)  # what is dropped is not hidden

        masked_grads = jax.tree.unflatten(structure, [drop(leaf, key) for leaf, key in zip(leaves, keys, strict=True)])
        return masked_grads, Decision(jnp.zeros(0), next_key)

    return by_gradients(update, lambda params: jax.random.key(seed))


def moco(
    beta: float = 0.5, gamma: float = 0.1, rho: float = 0.0, max_tasks: int = CAPACITY
) -> optax.GradientTransformationExtraArgs:
    """Follows running averages of the gradients, with weights that move towards their shortest combination.

    Args:
        beta: share of the present gradient in the average.
        gamma: step of the weights.
        rho: pull of the weights towards evenness.
        max_tasks: that the state has room for; it holds as many gradients.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["moco"](beta=1.0, gamma=0.0)
        >>> update, _ = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> update.tolist()
        [1.0, 1.0, 1.0]

    References:
        Fernando, Shen, Liu, Chaudhury, Murugesan, Chen, "Mitigating Gradient Bias in Multi-objective Learning: A
        Provably Convergent Approach", 2023.
    """

    def update(task_grads, state, losses: Array | None):
        del losses
        is_started, weights, averages = state
        tasks = jax.tree.leaves(task_grads)[0].shape[0]
        tracked = first_rows(averages, tasks)
        tracked = jax.tree.map(lambda old, new: old + beta * (new.astype(jnp.float32) - old), tracked, task_grads)
        last = jnp.where(is_started, first_rows(weights, tasks), 1.0 / tasks)
        slope = gramian(tracked) @ last + rho * last
        new_weights = solvers.project_to_simplex(last - gamma * slope)
        combined = _cast_like(combine(tracked, new_weights), task_grads)
        state = (jnp.ones((), bool), with_first_rows(weights, new_weights), with_first_rows(averages, tracked))
        return combined, Decision(new_weights, state)

    return remembering(
        update, lambda params: (jnp.zeros((), bool), jnp.zeros(max_tasks), gradients_like(params, max_tasks))
    )


def modo(gamma: float = 0.1, rho: float = 0.1, max_tasks: int = CAPACITY) -> optax.GradientTransformationExtraArgs:
    """Moves the weights by inner products between the gradients of two batches, whose errors are independent.

    The batch of the step before is the second one, so that a step costs no further gradient.

    Args:
        gamma: step of the weights.
        rho: pull of the weights towards evenness.
        max_tasks: that the state has room for; it holds as many gradients.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["modo"]()
        >>> update, _ = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> update.tolist()
        [1.0, 1.0, 1.0]

    References:
        Chen, Fernando, Ying, Chen, "Three-Way Trade-Off in Multi-Objective Learning: Optimization, Generalization and
        Conflict-Avoidance", 2023.
    """

    def update(task_grads, state, losses: Array | None):
        del losses
        is_started, weights, before = state
        tasks = jax.tree.leaves(task_grads)[0].shape[0]
        last = jnp.where(is_started, first_rows(weights, tasks), 1.0 / tasks)
        task_grads_32 = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), task_grads)
        slope = gramian(task_grads_32, first_rows(before, tasks)) @ last + rho * last
        new_weights = jnp.where(is_started, solvers.project_to_simplex(last - gamma * slope), last)
        state = (jnp.ones((), bool), with_first_rows(weights, new_weights), with_first_rows(before, task_grads_32))
        return combine(task_grads, new_weights), Decision(new_weights, state)

    return remembering(
        update, lambda params: (jnp.zeros((), bool), jnp.zeros(max_tasks), gradients_like(params, max_tasks))
    )


def db_mtl(beta: float = 0.9, max_tasks: int = CAPACITY) -> optax.GradientTransformationExtraArgs:
    """Takes the gradients of the losses' logarithms, averages them over steps, and gives all the length of the longest.

    Args:
        beta: share of the past in the average of the gradients.
        max_tasks: that the state has room for; it holds as many gradients.

    Raises:
        ValueError: at the update, if `task_losses` is missing.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["db_mtl"](beta=0.0)
        >>> gradients = jnp.array([[-3.0, 4.0], [0.0, 10.0]])
        >>> update, _ = tx.update(gradients, tx.init(jnp.zeros(2)), task_losses=jnp.ones(2))
        >>> [round(x, 3) for x in update.tolist()]
        [-6.0, 18.0]

    References:
        Lin, Jiang, Ye, Zhang, Chen, Chen, Liu, Kwok, "Dual-Balancing for Multi-Task Learning", 2023.
    """

    def update(task_grads, averages, losses: Array | None):
        scale = 1.0 / jnp.maximum(required("db_mtl", losses), SMALLEST_LOSS)
        tasks = scale.shape[0]

        def average(old: Array, new: Array) -> Array:
            of_logarithm = scale.reshape(-1, *[1] * (new.ndim - 1)) * new.astype(jnp.float32)
            return of_logarithm + beta * (old - of_logarithm)

        averaged = jax.tree.map(average, first_rows(averages, tasks), task_grads)
        lengths = jnp.sqrt(jnp.diagonal(gramian(averaged)))
        weights = jnp.where(lengths > 0, lengths.max() / jnp.where(lengths > 0, lengths, 1.0), 0.0)
        combined = _cast_like(combine(averaged, weights), task_grads)
        return combined, Decision(weights, with_first_rows(averages, averaged))

    return remembering(update, lambda params: gradients_like(params, max_tasks))


def excess_mtl(step_size: float = 1.0, max_tasks: int = CAPACITY) -> optax.GradientTransformationExtraArgs:
    """Weighs those tasks more that are farther from the best they can reach, judged by their gradients.

    The excess risk of a task is its gradient's square in the metric of its past gradients, in units of its first value.

    Args:
        step_size: of the exponentiated steps of the weights.
        max_tasks: that the state has room for; it holds as many squared gradients.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["excess_mtl"]()
        >>> _, state = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> round(float(state.task_weights.sum()), 4)
        1.0

    References:
        He, Zhou, Zhang, Yang, "Robust Multi-Task Learning with Excess Risks", 2024.
    """

    def update(task_grads, state, losses: Array | None):
        del losses
        is_started, all_logits, all_first, all_squares = state
        tasks = jax.tree.leaves(task_grads)[0].shape[0]
        squared = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) ** 2, task_grads)
        squares = jax.tree.map(jnp.add, first_rows(all_squares, tasks), squared)

        def risk(square: Array, total: Array) -> Float[Array, " tasks"]:
            return (square / jnp.sqrt(total + EXCESS_NOISE)).reshape(tasks, -1).sum(axis=1)

        risks = jnp.stack(jax.tree.leaves(jax.tree.map(risk, squared, squares))).sum(axis=0)
        first = jnp.where(is_started, first_rows(all_first, tasks), risks)
        excess = jnp.where(is_started, risks / (first + EXCESS_NOISE), risks)
        logits = jax.nn.log_softmax(first_rows(all_logits, tasks) + step_size * excess)
        weights = jnp.exp(logits)
        after = (
            jnp.ones((), bool),
            with_first_rows(all_logits, logits),
            with_first_rows(all_first, first),
            with_first_rows(all_squares, squares),
        )
        return combine(task_grads, weights), Decision(weights, after)

    def init(params):
        return jnp.zeros((), bool), jnp.zeros(max_tasks), jnp.zeros(max_tasks), gradients_like(params, max_tasks)

    return remembering(update, init)


def _cast_like(combined, task_grads):
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), combined, task_grads)
