"""Task gradients of a batch, combined into one: number of backward passes, and the space in which they are balanced."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from mtl_jax import balance as balance_lib
from mtl_jax.models.ownership import join_private, split_private
from mtl_jax.training import losses as losses_lib
from mtl_jax.training.losses import LossParts, StepInputs, StepSpec


class Gradient(NamedTuple):
    """Gradient of a batch, with its losses, statistics, metrics and the method's state."""

    losses: Float[Array, " tasks"]  # in the order of `Objective.tasks`
    batch_stats: PyTree  # after the batch
    metrics: dict[str, Array]  # by "task/name"
    grads: PyTree  # like params; with a leading axis of tasks where they are stacked
    balance_state: PyTree


def balanced(problem: StepSpec, inputs: StepInputs, balance_state: PyTree) -> Gradient:
    """Returns the one gradient that a method makes of the tasks'; a task's own leaves take that task's alone."""
    if problem.backward == "summed":
        gradient = in_parts(summed, problem, inputs)
        return gradient._replace(balance_state=balance_state)
    if problem.backward == "weighted":
        return _weighted(problem, inputs, balance_state)
    if problem.backward == "features":
        return _at_features(problem, inputs, balance_state)
    gradient, names = in_parts(stacked, problem, inputs), problem.objective.tasks
    shared, private = split_private(gradient.grads, names)
    gramian = balance_lib.gramian(shared)  # compiled once, though the method asks for it too
    like = split_private(inputs.params, names)[0]
    shared, state = problem.balance.update(shared, balance_state, like, task_losses=gradient.losses)
    private_grads = {name: jax.tree.map(operator.itemgetter(row), private[name]) for row, name in enumerate(names)}
    grads = join_private(shared, private_grads)
    metrics = gradient.metrics | _weights(names, state) | _lengths_and_cosines(names, gramian)
    return gradient._replace(grads=grads, metrics=metrics, balance_state=state)


def summed(problem: StepSpec, inputs: StepInputs) -> Gradient:
    """The gradient of the sum of all losses: each group of streams forward and back once."""
    losses, metrics, batch_stats, grads = _no_losses(problem), {}, inputs.batch_stats, None
    for task_rows, function in _groups(problem, inputs):
        values, backward, by_products = jax.vjp(functools.partial(function, batch_stats), inputs.params, has_aux=True)
        (gradient,) = backward(jnp.ones_like(values))
        grads = gradient if grads is None else jax.tree.map(jnp.add, grads, gradient)
        losses, metrics, batch_stats = (
            losses.at[task_rows].add(values),
            metrics | by_products.metrics,
            by_products.batch_stats,
        )
    return Gradient(losses, batch_stats, metrics, grads, ())


def stacked(problem: StepSpec, inputs: StepInputs) -> Gradient:
    """The tasks' gradients, each leaf [tasks, *param_shape]: each group forward once, back for each of its tasks."""
    losses, metrics, batch_stats = _no_losses(problem), {}, inputs.batch_stats
    by_task: list[PyTree] = [None for _ in problem.objective.tasks]
    for task_rows, function in _groups(problem, inputs):
        values, backward, by_products = jax.vjp(functools.partial(function, batch_stats), inputs.params, has_aux=True)
        for row, task in enumerate(task_rows.tolist()):
            (gradient,) = backward(_one_hot(row, values))
            by_task[task] = gradient if by_task[task] is None else jax.tree.map(jnp.add, by_task[task], gradient)
        losses, metrics, batch_stats = (
            losses.at[task_rows].add(values),
            metrics | by_products.metrics,
            by_products.batch_stats,
        )
    grads = jax.tree.map(lambda *rows: jnp.stack(rows), *by_task)
    return Gradient(losses, batch_stats, metrics, grads, ())


def _weighted(problem: StepSpec, inputs: StepInputs, balance_state: PyTree) -> Gradient:
    """The gradient of the weighted sum: each group forward and back once.

    Where tasks share a group, it goes back only when the losses of all groups are known, and the weights with them.
    """
    names = problem.objective.tasks
    losses, metrics, batch_stats, ways_back = _no_losses(problem), {}, inputs.batch_stats, []
    for task_rows, function in _groups(problem, inputs):
        values, backward, by_products = jax.vjp(functools.partial(function, batch_stats), inputs.params, has_aux=True)
        ways_back.append((task_rows, backward(jnp.ones(1))[0] if len(task_rows) == 1 else backward))
        losses, metrics, batch_stats = (
            losses.at[task_rows].add(values),
            metrics | by_products.metrics,
            by_products.batch_stats,
        )
    assert isinstance(problem.balance, balance_lib.OnLosses)  # `task_balancing.backward` sees to that
    weights, state = problem.balance.weigh(losses, balance_state)
    shared, private = zip(*(_weighted_group(names, weights, *group_pass) for group_pass in ways_back), strict=True)
    private_grads = {name: _sum_trees([by_products[name] for by_products in private]) for name in names}
    return Gradient(
        losses, batch_stats, metrics | _weights(names, state), join_private(_sum_trees(shared), private_grads), state
    )


def _weighted_group(
    names: tuple[str, ...], weights: Float[Array, " tasks"], task_rows: np.ndarray, way_back: Any
) -> tuple[PyTree, dict[str, PyTree]]:
    """A group's part in the weighted gradient of the shared leaves, and in the plain one of each task's own.

    Args:
        names: of the tasks.
        weights: of the tasks.
        task_rows: numbers of the tasks that the group carries.
        way_back: the gradient of the only task's loss, or the function from the losses' weights to a gradient.
    """
    if len(task_rows) == 1:
        shared, private = split_private(way_back, names)
        weight = weights[task_rows[0]]
        return jax.tree.map(lambda leaf: weight * leaf, shared), private
    shared, private = split_private(way_back(weights[task_rows])[0], names)
    for name, weight in zip(names, weights, strict=True):  # the tasks' own leaves were weighted too
        undo = jnp.where(weight == 0, 0.0, 1.0 / jnp.where(weight == 0, 1.0, weight))
        private[name] = jax.tree.map(lambda leaf, undo=undo: undo * leaf, private[name])
    return shared, private


def _at_features(problem: StepSpec, inputs: StepInputs, balance_state: PyTree) -> Gradient:
    """Balances the gradients at the last common features, and takes what comes of it back through the network once.

    References:
        Sener, Koltun, "Multi-Task Learning as Multi-Objective Optimization", 2018 (the upper bound of section 3.3).
    """
    names = problem.objective.tasks
    ((task_rows, function),) = _groups(problem, inputs)

    def losses_of(params: PyTree, offsets: PyTree) -> tuple[tuple[Array, PyTree], LossParts]:
        values, by_products = function(inputs.batch_stats, params, offsets=offsets)
        return (values, by_products.shared), by_products

    shapes = jax.eval_shape(lambda params: function(inputs.batch_stats, params)[1].shared, inputs.params)
    offsets = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (values, features), backward, by_products = jax.vjp(losses_of, inputs.params, offsets, has_aux=True)
    zero_cotangents = jax.tree.map(jnp.zeros_like, features)
    # Of each way back only what is used is computed: here what follows the features, below what leads to them.
    rows = {task: backward((_one_hot(row, values), zero_cotangents))[1] for row, task in enumerate(task_rows.tolist())}
    task_grads = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(rows[task] for task in range(len(names))))
    losses = _no_losses(problem).at[task_rows].add(values)
    gramian = balance_lib.gramian(task_grads)
    at_features, state = problem.balance.update(task_grads, balance_state, None, task_losses=losses)
    shared = split_private(backward((jnp.zeros_like(values), at_features))[0], names)[0]
    private = split_private(backward((jnp.ones_like(values), zero_cotangents))[0], names)[1]
    metrics = by_products.metrics | _weights(names, state) | _lengths_and_cosines(names, gramian)
    return Gradient(losses, by_products.batch_stats, metrics, join_private(shared, private), state)


def in_parts(gradient: Callable[[StepSpec, StepInputs], Gradient], problem: StepSpec, inputs: StepInputs) -> Gradient:
    """Takes a batch in `problem.micro_batches` parts, one after another, and averages losses and gradients in float32.

    Every part is normalised by its own batch statistics, and the running ones follow part by part.
    """
    count = problem.micro_batches
    if count == 1:
        return gradient(problem, inputs)
    # Every part takes examples from all along the batch, and so from every device.
    split = jax.tree.map(
        lambda leaf: jnp.swapaxes(leaf.reshape(leaf.shape[0] // count, count, *leaf.shape[1:]), 0, 1), inputs.batch
    )

    def add_part(carry: tuple[PyTree, Any], micro_batch: tuple[Any, Array]) -> tuple[tuple[PyTree, Any], None]:
        (batch_stats, total), (batch, number) = carry, micro_batch
        micro_gradient = gradient(
            problem, inputs._replace(batch_stats=batch_stats, batch=batch, key=jax.random.fold_in(inputs.key, number))
        )
        share = jax.tree.map(
            lambda leaf: leaf / count, (micro_gradient.losses, micro_gradient.metrics, micro_gradient.grads)
        )
        return (micro_gradient.batch_stats, jax.tree.map(jnp.add, total, share)), None

    first = inputs._replace(batch=jax.tree.map(lambda leaf: leaf[0], split))
    shapes = jax.eval_shape(functools.partial(gradient, problem), first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), (shapes.losses, shapes.metrics, shapes.grads))
    start = (inputs.batch_stats, zeros)
    (batch_stats, (losses, metrics, grads)), _ = jax.lax.scan(add_part, start, (split, jnp.arange(count)))
    return Gradient(losses, batch_stats, metrics, grads, ())


def _groups(
    problem: StepSpec, inputs: StepInputs
) -> Iterator[tuple[np.ndarray, Callable[..., tuple[Array, LossParts]]]]:
    """The tasks that each group of streams carries, by their numbers, and `(batch_stats, params) -> losses` of it."""
    objective = problem.objective
    for number, group in enumerate(objective.groups):

        def function(batch_stats, params, *, offsets=None, group=group, number=number):
            key = jax.random.fold_in(inputs.key, number)
            group_inputs = inputs._replace(params=params, batch_stats=batch_stats, key=key)
            return losses_lib.group_losses(problem, group_inputs, group, offsets=offsets)

        yield np.array([objective.tasks.index(task) for task in objective.carried(group)]), function


def _no_losses(problem: StepSpec) -> Float[Array, " tasks"]:
    return jnp.zeros(len(problem.objective.tasks))


def _one_hot(row: int, like: Array) -> Array:
    return jnp.zeros_like(like).at[row].set(1.0)


def _sum_trees(trees: Sequence[PyTree]) -> PyTree:
    return functools.reduce(lambda total, tree: jax.tree.map(jnp.add, total, tree), trees)


def _weights(names: tuple[str, ...], state: Any) -> dict[str, Array]:
    """The weights of the tasks, and what the method's solver left over, for the log."""
    weights = {f"{name}/task_weight": weight for name, weight in zip(names, state.task_weights, strict=False)}
    return weights | {"all/balance_residual": state.residual}


def _lengths_and_cosines(names: tuple[str, ...], gramian: Float[Array, "tasks tasks"]) -> dict[str, Array]:
    """The lengths of the tasks' gradients, and the cosines between them; 0 where one vanishes."""
    lengths = jnp.sqrt(jnp.diagonal(gramian))
    metrics = {f"{name}/gradient_norm": length for name, length in zip(names, lengths, strict=True)}
    for first, second in itertools.combinations(range(len(names)), 2):
        product = lengths[first] * lengths[second]
        cosine = gramian[first, second] / jnp.where(product > 0, product, 1.0)
        metrics[f"all/cosine/{names[first]}/{names[second]}"] = cosine
    return metrics
