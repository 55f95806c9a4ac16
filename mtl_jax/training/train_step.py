"""The pure training step: losses of every stream, terms that keep old tasks, one update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from mtl_jax.continual.method import Method
from mtl_jax.models.layers import branch_name
from mtl_jax.models.ownership import SHARED, by_owner, join_private, split_private
from mtl_jax.models.patterns import change_where
from mtl_jax.training import optimizer, soft_sharing, task_gradients
from mtl_jax.training.losses import Objective, StepInputs, StepSpec
from mtl_jax.training.task_gradients import Gradient


class TrainState(NamedTuple):
    """All that a step changes."""

    step: Int[Array, ""]  # of the stage
    skipped_steps: Int[Array, ""]  # that were left out because they were not finite
    params: PyTree
    batch_stats: PyTree
    balance_state: PyTree
    opt_state: dict[str, PyTree]  # of what tasks share, and of each task's own: by owner
    ema: optimizer.EmaState | None
    keep_state: dict[str, PyTree]  # of what keeps old tasks, by method
    key: Array  # of the stage; each step folds its number in

    @property
    def si_path_integral(self) -> PyTree | None:
        """Each parameter's part in the loss's fall, where synaptic intelligence follows it."""
        return self.keep_state.get("si")


# (state, key of `Objective.keep` -> what the stage was given of the earlier ones, batch) -> state, metrics
Step = Callable[[TrainState, Mapping[str, PyTree], Mapping[str, Any]], tuple[TrainState, dict[str, Array]]]


def init_state(
    params: PyTree,
    batch_stats: PyTree,
    *,
    balance: optax.GradientTransformationExtraArgs,
    tx: optimizer.Optimizer,
    ema: bool,
    keep_state: dict[str, PyTree] | None = None,
    tasks: tuple[str, ...],
    trained_tasks: tuple[str, ...],
    key: Array,
) -> TrainState:
    """Returns the state at step 0 of a stage.

    Args:
        params: parameters of the network.
        batch_stats: batch statistics of the network.
        balance: the balancing method.
        tx: gradient -> update.
        ema: keep an average of the parameters.
        keep_state: what methods against forgetting begin with; nothing by default.
        tasks: of the network.
        trained_tasks: those of them with a loss in the stage.
        key: of the stage.
    """
    shared, _ = split_private(params, trained_tasks)
    owned = by_owner(params, tasks)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped_steps=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        balance_state=balance.init(shared),
        opt_state={owner: tx.init(subtree) for owner, subtree in owned.items() if owner in (SHARED, *trained_tasks)},
        ema=optimizer.EmaState(params, jnp.zeros((), jnp.int32)) if ema else None,
        keep_state=keep_state or {},
        key=key,
    )


def make_train_step(
    problem: StepSpec,
    *,
    tx: optimizer.Optimizer,
    schedule: optax.Schedule,
    clip_norm: float = 0.0,
    ema_decay: float = 0.0,
    soft_sharing_strength: float = 0.0,
    skip_not_finite: bool = False,
) -> Step:
    """Returns `(state, memory, batch) -> (state, metrics)`, to be jitted with `state` donated.

    Args:
        problem: the network, the losses of the stage, and how the tasks' gradients become one.
        tx: gradient -> update; what tasks share and each task's own have a state of it each.
        schedule: the learning rate of `tx`, for the log.
        clip_norm: largest norm of the gradient; of each task's where tasks share nothing. 0 does not clip.
        ema_decay: of the averaged weights; 0 keeps none.
        soft_sharing_strength: with which the tasks' branches draw each other near; 0 is off.
        skip_not_finite: change nothing where the loss or the gradient is not finite, and count the step.
    """
    stage = problem.objective

    def step(
        state: TrainState, memory: Mapping[str, PyTree], batch: Mapping[str, Any]
    ) -> tuple[TrainState, dict[str, Array]]:
        objective = stage.of(tuple(batch))
        step_spec = problem._replace(objective=objective)
        key = jax.random.fold_in(state.key, state.step)
        inputs = StepInputs(state.params, state.batch_stats, memory, batch, key, average=_average(objective, state))
        gradient = _one_gradient(step_spec, inputs, state.balance_state)
        grads, penalties = _with_penalties(objective.keep, gradient.grads, state.params, memory)
        metrics = gradient.metrics | penalties
        metrics["all/loss"] = gradient.losses.sum() + sum(penalties.values(), start=0.0)
        gradients, owned_params = (by_owner(tree, tuple(problem.tasks)) for tree in (grads, state.params))
        squared_norms = {owner: tx.squared_norm(gradient) for owner, gradient in gradients.items()}
        metrics["all/gradient_norm"] = jnp.sqrt(sum(squared_norms.values(), start=jnp.zeros(())))
        metrics["all/learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        soft_weight = soft_sharing_strength * jnp.asarray(schedule(state.step)) if soft_sharing_strength else None
        factors = _clip_factors(squared_norms, (SHARED, *objective.tasks), clip_norm)
        params, opt_state = _updated(
            tx, objective, gradients, factors, owned_params, state.opt_state, soft_weight, memory
        )
        after = TrainState(
            step=state.step + 1,
            skipped_steps=state.skipped_steps,
            params=params,
            batch_stats=gradient.batch_stats,
            balance_state=gradient.balance_state,
            opt_state=opt_state,
            ema=optimizer.ema_update(state.ema, params, ema_decay) if state.ema is not None else None,
            keep_state={
                name: objective.keep[name].step(method_state, gradient.grads, state.params, params)
                for name, method_state in state.keep_state.items()
            },
            key=state.key,
        )
        if skip_not_finite:
            finite = jnp.isfinite(metrics["all/loss"]) & jnp.isfinite(metrics["all/gradient_norm"])
            after = _unless(finite, after, state)
            metrics["all/skipped_steps"] = after.skipped_steps
        return after, metrics

    return step


def _average(objective: Objective, state: TrainState) -> PyTree:
    """The variables that fill in what is not labelled, where the stage asks for it."""
    if objective.pseudo_threshold is None or state.ema is None:
        return None
    return {"params": state.ema.params, "batch_stats": state.batch_stats}


def _one_gradient(spec: StepSpec, inputs: StepInputs, balance_state: PyTree) -> Gradient:
    """The gradient of all losses: balanced, or where some only bound the others as their method combines them."""
    objective = spec.objective
    combine = next((method.combine for method in objective.keep.values() if method.opposed(objective.stage)), None)
    if combine is None:
        return task_gradients.balanced(spec, inputs, balance_state)
    gradient = task_gradients.in_parts(task_gradients.stacked, spec, inputs)
    old = jnp.array([name in objective.opposed for name in objective.tasks])
    grads = combine(_sum_of_rows(gradient.grads, ~old), _sum_of_rows(gradient.grads, old))
    return gradient._replace(grads=grads, balance_state=balance_state)


def _with_penalties(
    keep: Mapping[str, Method], grads: PyTree, params: PyTree, memory: Mapping[str, PyTree]
) -> tuple[PyTree, dict[str, Array]]:
    """Adds the gradients of loss terms of the parameters alone; returns these terms too, by name for the log."""
    penalties: dict[str, Array] = {}
    for name, method in keep.items():
        if method.penalty(params, memory.get(name)) is None:
            continue
        value, penalty_grads = jax.value_and_grad(method.penalty)(params, memory.get(name))
        grads = jax.tree.map(jnp.add, grads, penalty_grads)
        penalties[f"all/{name}_penalty"] = value
    return grads, penalties


def _unless(finite: Bool[Array, ""], after: TrainState, before: TrainState) -> TrainState:
    """The state after a step that was finite; else the one before, with the step counted."""
    skipped = before._replace(step=after.step, skipped_steps=before.skipped_steps + 1)
    keep = after._replace(key=None), skipped._replace(key=None)  # keys are no numbers to choose between
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), *keep)._replace(key=before.key)


def _clip_factors(
    squared_norms: Mapping[str, Float[Array, ""]], owners: Iterable[str], clip_norm: float
) -> dict[str, Float[Array, ""]]:
    """By owner of a part that the batch trains, what its gradient is shortened by; nothing shared, each by itself."""
    active = {owner: squared_norms[owner] for owner in squared_norms if owner in owners}
    if SHARED in active:
        return dict.fromkeys(active, optimizer.clip_factor(active.values(), clip_norm))
    # Networks of their own, each with an optimizer of its own.
    return {owner: optimizer.clip_factor([square], clip_norm) for owner, square in active.items()}


def _updated(
    tx: optimizer.Optimizer,
    objective: Objective,
    gradients: Mapping[str, PyTree],
    factors: Mapping[str, Float[Array, ""]],
    params: Mapping[str, PyTree],
    opt_state: Mapping[str, PyTree],
    soft_weight: Float[Array, ""] | None,
    memory: Mapping[str, PyTree],
) -> tuple[PyTree, dict[str, PyTree]]:
    """The parameters and the optimizer's states after a step.

    What is a task's own stays as it is, weight decay and the optimizer's state included, unless the batch trains it.
    """
    params, opt_state = dict(params), dict(opt_state)
    for owner, factor in factors.items():
        updates, opt_state[owner] = tx.update(gradients[owner], opt_state[owner], params[owner], factor)
        updates = change_where(jnp.zeros_like, updates, objective.frozen)
        for name, method in objective.keep.items():
            updates = method.project(updates, memory.get(name))
        params[owner] = optax.apply_updates(params[owner], updates)
    if soft_weight is not None:
        branches = {task: params[task][branch_name(task)] for task in factors if task != SHARED}
        paired_branches = zip(branches, soft_sharing.draw_near(list(branches.values()), soft_weight), strict=True)
        params |= {task: {**params[task], branch_name(task): branch} for task, branch in paired_branches}
    return join_private({}, params), opt_state


def _sum_of_rows(task_grads: PyTree, is_selected: Bool[Array, " tasks"]) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.tensordot(is_selected.astype(leaf.dtype), leaf, axes=1), task_grads)
