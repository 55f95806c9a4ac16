"""Optax transforms from task gradients, with leaves `[tasks, *param_shape]`, to one update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from mtl_jax.balance import gradient_weights

# (gramian, state, task_losses or None) -> task_weights, state
WeightFn = Callable[[Array, Any, Array | None], tuple[Array, Any]]


class PCGradState(NamedTuple):
    """State of `pcgrad`."""

    key: PRNGKeyArray


def gramian(task_grads: PyTree) -> Float[Array, "tasks tasks"]:
    """Inner products of the tasks' gradients, added up leaf by leaf in float32.

    Args:
        task_grads: pytree, each leaf [tasks, *param_shape].

    Returns:
        The Gramian.
    """

    def leaf_gramian(leaf: Array) -> Array:
        axes = tuple(range(1, leaf.ndim))
        return jax.lax.dot_general(
            leaf,
            leaf,
            dimension_numbers=((axes, axes), ((), ())),
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )

    return sum(map(leaf_gramian, jax.tree.leaves(task_grads)), start=jnp.float32(0.0))  # pyright: ignore


def combine(task_grads: PyTree, task_weights: Float[Array, "tasks"]) -> PyTree:
    """The weighted sum of the tasks' gradients; weights of one give their plain sum, bit for bit.

    Args:
        task_grads: pytree, each leaf [tasks, *param_shape].
        task_weights: one weight per task.

    Returns:
        Pytree, each leaf [*param_shape].
    """

    def combine_leaf(leaf: Array) -> Array:
        weights = task_weights.reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.sum(weights * leaf.astype(jnp.float32), axis=0).astype(leaf.dtype)

    return jax.tree.map(combine_leaf, task_grads)


def _check(task_grads: PyTree, params: PyTree | None, task_losses: Array | None) -> None:
    """Raises ValueError unless every leaf is [tasks, *param_shape] and the losses are [tasks]."""
    leaves = jax.tree_util.tree_leaves_with_path(task_grads)
    if not leaves:
        raise ValueError("expected task gradients, found an empty tree: give one gradient per task")
    if params is not None and jax.tree.structure(params) != jax.tree.structure(task_grads):
        raise ValueError(
            f"expected task gradients in the structure of params, {jax.tree.structure(params)}, found "
            f"{jax.tree.structure(task_grads)}: differentiate every task's loss by the same params"
        )
    param_leaves = [None] * len(leaves) if params is None else jax.tree.leaves(params)
    tasks = jnp.shape(leaves[0][1])[:1]
    for (path, leaf), param in zip(leaves, param_leaves, strict=True):
        shape = jnp.shape(leaf)
        wrong_param = param is not None and shape[1:] != jnp.shape(param)
        if not shape or shape[:1] != tasks or shape[0] == 0 or wrong_param:
            count = tasks[0] if tasks and not wrong_param else "tasks"
            expected = ["*param_shape"] if param is None else jnp.shape(param)
            raise ValueError(
                f"expected task gradients of shape [{', '.join(map(str, (count, *expected)))}] at "
                f"{jax.tree_util.keystr(path) or 'the leaf'}, found {list(shape)}: "
                "stack one gradient per task along a new first axis"
            )
    if task_losses is not None and jnp.shape(task_losses) != tasks:
        raise ValueError(
            f"expected task_losses of shape {list(tasks)}, one loss per task gradient, found "
            f"{list(jnp.shape(task_losses))}: give them in the order of the gradients"
        )


def _transform(weight_fn: WeightFn, init_fn: Callable[..., Any] | None = None) -> optax.GradientTransformationExtraArgs:
    """The transform that weights the tasks by what `weight_fn` makes of their Gramian."""

    def init_empty(params):
        del params
        return optax.EmptyState()

    def update_fn(updates, state, params=None, *, task_losses=None, **extra_args):
        del extra_args
        _check(updates, params, task_losses)
        task_weights, state = weight_fn(gramian(updates), state, task_losses)
        return combine(updates, task_weights), state

    return optax.GradientTransformationExtraArgs(init_fn or init_empty, update_fn)


def equal_sum() -> optax.GradientTransformationExtraArgs:
    """Adds the tasks' gradients: the plain gradient of the summed losses.

    Returns:
        A transform from task gradients to one update.

    Example:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["sum"]()
        >>> update, _ = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> update.tolist()
        [2.0, 2.0, 2.0]
    """
    return _transform(lambda gramian, state, task_losses: (gradient_weights.sum_weights(gramian), state))


def equal_mean() -> optax.GradientTransformationExtraArgs:
    """Averages the tasks' gradients: the plain gradient of the mean loss.

    Returns:
        A transform from task gradients to one update.

    Example:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.METHODS["mean"]()
        >>> update, _ = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> update.tolist()
        [1.0, 1.0, 1.0]
    """
    return _transform(lambda gramian, state, task_losses: (gradient_weights.mean_weights(gramian), state))


def fixed(weights: Sequence[float] | None = None) -> optax.GradientTransformationExtraArgs:
    """Weights the losses by given numbers: the plain gradient of the weighted sum of losses (scalarisation).

    Args:
        weights: one weight per task, in the order of the gradients; without them every task has weight 1.

    Returns:
        A transform from task gradients to one update.

    Raises:
        ValueError: at the update, if the number of weights is not that of the tasks.

    Example:
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

    def weight_fn(gramian, state, task_losses):
        del task_losses
        if weights is None:
            return gradient_weights.sum_weights(gramian), state
        if len(weights) != gramian.shape[0]:
            raise ValueError(
                f"expected one weight for each of {gramian.shape[0]} task gradients, found {len(weights)}: "
                "give the weights in the order of the tasks"
            )
        return jnp.asarray(weights, jnp.float32), state

    return _transform(weight_fn)


def pcgrad(seed: int = 0) -> optax.GradientTransformationExtraArgs:
    """Removes from each task's gradient what conflicts with the others', in random order, and adds them.

    Args:
        seed: of the key that draws the order of the projections anew for every task and step.

    Returns:
        A transform from task gradients to one update.

    Example:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.pcgrad()
        >>> update, _ = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> print(update.round(4))
        [0.5848 3.8012 3.8012]

    References:
        Yu, Kumar, Gupta, Levine, Hausman, Finn, "Gradient Surgery for Multi-Task Learning", 2020.
    """

    def init_fn(params):
        del params
        return PCGradState(key=jax.random.key(seed))

    def weight_fn(gramian, state, task_losses):
        del task_losses
        next_key, order_key = jax.random.split(state.key)
        return gradient_weights.pcgrad_weights(gramian, key=order_key), PCGradState(key=next_key)

    return _transform(weight_fn, init_fn)


def mgda(
    normalise: str = "none", max_iterations: int = gradient_weights.MGDA_MAX_ITERATIONS
) -> optax.GradientTransformationExtraArgs:
    """Takes the shortest convex combination of the tasks' gradients: it descends on all tasks or is zero.

    Args:
        normalise: what the gradients are divided by before the weights are sought: "none", "l2" (their
            length) or "loss" (the task's loss). The weights are then applied to the gradients as given.
        max_iterations: bound on the solver's iterations.

    Returns:
        A transform from task gradients to one update. With `normalise="loss"` its update needs `task_losses`.

    Raises:
        ValueError: if `normalise` is none of these; at the update, if `task_losses` is needed and missing.

    Example:
        >>> import jax.numpy as jnp
        >>> from mtl_jax import balance
        >>> tx = balance.mgda()
        >>> update, _ = tx.update(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), tx.init(jnp.zeros(3)))
        >>> print(abs(update.round(4)))
        [0. 1. 1.]

    References:
        Désidéri, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization", 2012.
        Sener, Koltun, "Multi-Task Learning as Multi-Objective Optimization", 2018 (the normalisations).
    """
    if normalise not in ("none", "l2", "loss"):
        raise ValueError(f'expected normalise to be "none", "l2" or "loss", found "{normalise}"')

    def weight_fn(gramian, state, task_losses):
        if normalise == "loss":
            if task_losses is None:
                raise ValueError(
                    'expected task_losses for normalise="loss", found none: call '
                    "update(task_grads, state, params, task_losses=losses)"
                )
            gramian = _rescaled(gramian, jnp.asarray(task_losses, gramian.dtype))
        elif normalise == "l2":
            gramian = _rescaled(gramian, jnp.sqrt(jnp.diagonal(gramian)))
        return gradient_weights.mgda_weights(gramian, max_iterations=max_iterations), state

    return _transform(weight_fn)


def _rescaled(gramian: Float[Array, "tasks tasks"], scale: Float[Array, "tasks"]) -> Array:
    """The Gramian of the gradients divided by `scale`; a scale of zero divides nothing."""
    scale = jnp.where(scale > 0, scale, 1.0)
    return gramian / scale[:, None] / scale[None, :]
