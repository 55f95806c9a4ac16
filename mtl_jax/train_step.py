"""The pure training step: losses of every stream, terms that keep old tasks, one update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from mtl_jax import optimizer, task_gradients
from mtl_jax.continual import agem, ewc, si
from mtl_jax.losses import Memory
from mtl_jax.ownership import join_private, split_private, where_frozen
from mtl_jax.task_gradients import Problem


class TrainState(NamedTuple):
    """All that a step changes."""

    step: Int[Array, ""]  # of the stage
    params: PyTree
    batch_stats: PyTree
    balance_state: PyTree
    opt_state: PyTree
    ema: optimizer.EmaState | None
    path: PyTree | None  # of synaptic intelligence: each parameter's part in the loss's fall
    key: Array  # of the stage; each step folds its number in


Step = Callable[[TrainState, Memory, Mapping[str, Any]], tuple[TrainState, dict[str, Array]]]


def init_state(
    params: PyTree,
    batch_stats: PyTree,
    *,
    balance: optax.GradientTransformationExtraArgs,
    tx: optax.GradientTransformation,
    ema: bool,
    path: bool = False,
    tasks: tuple[str, ...],
    key: Array,
) -> TrainState:
    """Returns the state at step 0 of a stage."""
    shared, _ = split_private(params, tasks)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        balance_state=balance.init(shared),
        opt_state=tx.init(params),
        ema=optimizer.EmaState(params, jnp.zeros((), jnp.int32)) if ema else None,
        path=jax.tree.map(jnp.zeros_like, params) if path else None,
        key=key,
    )


def make_train_step(
    problem: Problem, *, tx: optax.GradientTransformation, schedule: optax.Schedule, ema_decay: float
) -> Step:
    """Returns `(state, memory, batch) -> (state, metrics)`, to be jitted with `state` donated.

    Args:
        problem: the network, the losses of the stage, and how the tasks' gradients become one.
        tx: gradient -> update.
        schedule: the learning rate of `tx`, for the log.
        ema_decay: of the averaged weights; 0 keeps none.
    """
    objective, names = problem.objective, problem.objective.tasks

    def step(state: TrainState, memory: Memory, batch: Mapping[str, Any]) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        given = task_gradients.Batch(state.params, state.batch_stats, memory, batch, key)
        if objective.reference_tasks:
            found = task_gradients.in_parts(task_gradients.stacked, problem, given)
            old = jnp.array([name in objective.reference_tasks for name in names])
            grads = agem.project(_sum_of_rows(found.grads, ~old), _sum_of_rows(found.grads, old))
            found = found._replace(grads=grads, balance_state=state.balance_state)
        else:
            found = task_gradients.balanced(problem, given, state.balance_state)
        grads, metrics = found.grads, dict(found.metrics)
        if memory.anchors and objective.ewc_strength:
            penalty, penalty_grads = jax.value_and_grad(_penalty)(state.params, memory.anchors, objective.ewc_strength)
            grads = jax.tree.map(jnp.add, grads, penalty_grads)
            metrics["all/ewc_penalty"] = penalty
        metrics["all/loss"] = found.losses.sum() + metrics.get("all/ewc_penalty", 0.0)
        metrics["all/gradient_norm"] = optax.tree.norm(grads)
        metrics["all/learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        # Weight decay must not wear down the slice of a task that this stage does not train.
        idle = split_private(updates, tuple(task for task in problem.tasks if task not in names))
        updates = join_private(idle[0], jax.tree.map(jnp.zeros_like, idle[1]))
        updates = where_frozen(jnp.zeros_like, updates, objective.frozen)
        params = optax.apply_updates(state.params, updates)
        after = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=found.batch_stats,
            balance_state=found.balance_state,
            opt_state=opt_state,
            ema=optimizer.ema_update(state.ema, params, ema_decay) if state.ema is not None else None,
            path=None if state.path is None else si.update_path(state.path, found.grads, state.params, params),
            key=state.key,
        )
        return after, metrics

    return step


def _penalty(params: PyTree, anchors: tuple[ewc.Anchor, ...], strength: float) -> Float[Array, ""]:
    return jnp.stack([ewc.penalty(params, *anchor, strength) for anchor in anchors]).sum()


def _sum_of_rows(task_grads: PyTree, chosen: Bool[Array, " tasks"]) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.tensordot(chosen.astype(leaf.dtype), leaf, axes=1), task_grads)
