"""Parts of balancing methods: Optax transforms from task gradients, `[tasks, *param_shape]`, to one update."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

CAPACITY = 16  # tasks that a method's state has room for, unless `max_tasks` says otherwise


class BalanceState(NamedTuple):
    """State of every method: its own, and what it did last, for the log."""

    method: Any
    task_weights: Float[Array, " capacity"]  # of the first tasks; 0 where a method has none
    residual: Float[Array, ""]  # of the method's solver, relative; 0 without one


class Decision(NamedTuple):
    """What a method makes of one step."""

    task_weights: Float[Array, " tasks"]
    method: Any  # its state afterwards
    residual: Float[Array, ""] | float = 0.0


class OnLosses(optax.GradientTransformationExtraArgs):
    """A method whose weights depend on the tasks' losses alone, or on nothing.

    `weigh(task_losses, state) -> task weights, state` decides them before any gradient is known, as `update` would.
    """

    weigh: Callable[[Float[Array, " tasks"], BalanceState], tuple[Float[Array, " tasks"], BalanceState]]


class RemembersGradients(optax.GradientTransformationExtraArgs):
    """A method whose state holds gradients of past steps."""


def gramian(task_grads: PyTree, other_grads: PyTree | None = None) -> Float[Array, "tasks tasks"]:
    """Inner products of the tasks' gradients, added up leaf by leaf in float32.

    Args:
        task_grads: pytree, each leaf [tasks, *param_shape].
        other_grads: gradients of the second factor, of the same form; `task_grads` if None.

    Returns:
        The Gramian.
    """

    def leaf_gramian(leaf: Array, second_leaf: Array) -> Array:
        # As matrices: contracted over several axes, a convolution's leaf takes a CPU three times as long.
        rows, second_rows = (array.reshape(array.shape[0], -1) for array in (leaf, second_leaf))
        highest = jax.lax.Precision.HIGHEST
        return jnp.matmul(rows, second_rows.T, precision=highest, preferred_element_type=jnp.float32)

    pairs = zip(
        jax.tree.leaves(task_grads), jax.tree.leaves(task_grads if other_grads is None else other_grads), strict=True
    )
    return sum((leaf_gramian(*pair) for pair in pairs), start=jnp.float32(0.0))  # pyright: ignore


def combine(task_grads: PyTree, task_weights: Float[Array, "tasks"]) -> PyTree:
    """The weighted sum of the tasks' gradients; weights of one give their plain sum, bit for bit.

    Args:
        task_grads: pytree, each leaf [tasks, *param_shape].
        task_weights: one weight per task.

    Returns:
        Pytree, each leaf [*param_shape].
    """

    def combine_leaf(leaf: Array) -> Array:
        wide = leaf.astype(jnp.float32)
        return added([weight * row for weight, row in zip(task_weights, wide, strict=True)]).astype(leaf.dtype)

    return jax.tree.map(combine_leaf, task_grads)


def added(rows: Iterable[Array]) -> Array:
    """The sum of the tasks' rows, written out: XLA's reduction over a first axis takes a CPU ten times as long."""
    return functools.reduce(jnp.add, rows)


def check(task_grads: PyTree, params: PyTree | None, task_losses: Array | None) -> None:
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


def by_gramian(
    decide: Callable[[Array, Any, Array | None], Decision], init: Callable[[], Any] = tuple
) -> optax.GradientTransformationExtraArgs:
    """The transform that weights the tasks by their Gramian and, where given, their losses.

    Args:
        decide: (Gramian, the method's state, task losses or None) -> what to do.
        init: makes the method's state.
    """

    def update(task_grads: PyTree, method: Any, losses: Array | None) -> tuple[PyTree, Decision]:
        decision = decide(gramian(task_grads), method, losses)
        return combine(task_grads, decision.task_weights), decision

    return by_gradients(update, lambda params: init())


def by_losses(
    name: str, decide: Callable[[Array, Any], Decision], init: Callable[[], Any] = tuple
) -> optax.GradientTransformationExtraArgs:
    """The transform that weights the tasks by their losses alone: no inner product is computed.

    Args:
        name: of the method, for the error where losses are missing.
        decide: (task losses, the method's state) -> what to do.
        init: makes the method's state.
    """
    return without_gradients(lambda tasks, method, losses: decide(required(name, losses), method), init)


def without_gradients(
    decide: Callable[[int, Any, Array | None], Decision], init: Callable[[], Any] = tuple
) -> optax.GradientTransformationExtraArgs:
    """The transform that weights the tasks without looking at their gradients.

    Args:
        decide: (number of tasks, the method's state, task losses or None) -> what to do.
        init: makes the method's state.
    """

    def update(task_grads: PyTree, method: Any, losses: Array | None) -> tuple[PyTree, Decision]:
        decision = decide(jax.tree.leaves(task_grads)[0].shape[0], method, losses)
        return combine(task_grads, decision.task_weights), decision

    def weigh(task_losses: Array, state: BalanceState) -> tuple[Array, BalanceState]:
        decision = decide(task_losses.shape[0], state.method, jnp.asarray(task_losses, jnp.float32))
        return decision.task_weights, _after(decision, state)

    tx = OnLosses(*by_gradients(update, lambda params: init()))
    tx.weigh = weigh
    return tx


def remembering(
    update: Callable[[PyTree, Any, Array | None], tuple[PyTree, Decision]], init: Callable[[PyTree], Any]
) -> optax.GradientTransformationExtraArgs:
    """As `by_gradients`, for a method whose state holds gradients."""
    return RemembersGradients(*by_gradients(update, init))


def by_gradients(
    update: Callable[[PyTree, Any, Array | None], tuple[PyTree, Decision]], init: Callable[[PyTree], Any]
) -> optax.GradientTransformationExtraArgs:
    """The transform of a method that needs the gradients themselves.

    Args:
        update: (task gradients, the method's state, task losses or None) -> the update, and what was done.
        init: makes the method's state from the params.
    """

    def init_fn(params: PyTree) -> BalanceState:
        return BalanceState(init(params), jnp.zeros((CAPACITY,)), jnp.zeros(()))

    def update_fn(updates, state, params=None, *, task_losses=None, **extra_args):
        del extra_args
        check(updates, params, task_losses)
        losses = None if task_losses is None else jnp.asarray(task_losses, jnp.float32)
        combined, decision = update(updates, state.method, losses)
        return combined, _after(decision, state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _after(decision: Decision, before: BalanceState) -> BalanceState:
    shown = jnp.asarray(decision.task_weights, jnp.float32)[:CAPACITY]
    weights = jnp.zeros_like(before.task_weights).at[: shown.shape[0]].set(shown)
    return BalanceState(decision.method, weights, jnp.asarray(decision.residual, jnp.float32))


def required(name: str, losses: Array | None) -> Array:
    """Returns the losses.

    Raises:
        ValueError: there are none.
    """
    if losses is None:
        raise ValueError(
            f"expected task_losses for {name}, found none: call update(task_grads, state, params, task_losses=losses)"
        )
    return losses


def check_capacity(tasks: int, capacity: int) -> None:
    """Checks that a method's state has room for the tasks.

    Raises:
        ValueError: it has not.
    """
    if tasks > capacity:
        raise ValueError(
            f"expected at most {capacity} task gradients, found {tasks}: make the method with max_tasks={tasks}"
        )


def gradients_like(params: PyTree, max_tasks: int) -> PyTree:
    """Zero gradients of so many tasks, in float32, to begin a running average with."""
    return jax.tree.map(lambda param: jnp.zeros((max_tasks, *jnp.shape(param)), jnp.float32), params)


def first_rows(tree: PyTree, tasks: int) -> PyTree:
    """The part of a state that belongs to the tasks at hand.

    Raises:
        ValueError: the state has no room for so many.
    """

    def cut(leaf: Array) -> Array:
        check_capacity(tasks, leaf.shape[0])
        return leaf[:tasks]

    return jax.tree.map(cut, tree)


def with_first_rows(tree: PyTree, rows: PyTree) -> PyTree:
    """A state with that part replaced."""
    return jax.tree.map(lambda leaf, new: leaf.at[: new.shape[0]].set(new), tree, rows)
