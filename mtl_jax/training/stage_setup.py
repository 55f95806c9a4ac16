"""The state and the jitted steps that a planned stage starts with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import PyTree

from mtl_jax import experiment
from mtl_jax.continual.method import Method
from mtl_jax.errors import UserError
from mtl_jax.models.layers import branch_name
from mtl_jax.models.ownership import counterpart, owner_of
from mtl_jax.runtime import devices
from mtl_jax.training import optimizer, task_balancing, train_step
from mtl_jax.training.losses import Objective, StepSpec
from mtl_jax.training.stage_plan import StagePlan, StageResult


def _warm_started(variables: PyTree, stage: StagePlan) -> PyTree:
    """Fills branch, norms and patches of the stage's own tasks from an earlier one's, wherever path and shape agree."""
    source, where = stage.settings.warm_start, f"config.stages.{stage.name}.warm_start"
    if not source:
        return variables
    given = {_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}
    copied = 0

    def fill(path: tuple, leaf: Any) -> Any:
        nonlocal copied
        owner = owner_of(_names(path), stage.own_tasks)
        there = _names(path) if owner is None else counterpart(_names(path), owner, source)
        found = given.get(there)
        if there == _names(path) or found is None or found.shape != leaf.shape:
            return leaf
        copied += 1
        return found

    filled = jax.tree_util.tree_map_with_path(fill, variables)
    if source in stage.own_tasks or not copied:
        raise UserError(f"{where} is {source!r}; expected another task that has a branch, norms or patches of its own")
    return filled


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(entry.key for entry in path)


def prepare(
    parts: experiment.Experiment, stage: StagePlan, learnt: StageResult, *, seed: int, skip_not_finite: bool = False
) -> tuple[train_step.TrainState, dict[int, train_step.Step], dict[str, PyTree]]:
    """Builds a stage's state at step 0, its jitted steps by when each begins, and what they read of earlier stages."""
    settings, objective = stage.settings, stage.objectives[0]
    schedule = optimizer.learning_rate_schedule(
        settings.schedule,
        learning_rate=settings.learning_rate,
        total_steps=stage.total_steps,
        warmup_fraction=settings.warmup_fraction,
    )
    tx = optimizer.build(
        settings.optimizer,
        learning_rate=schedule,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        rates=stage.rates,
    )
    where = f"config.stages.{stage.name}"
    method = task_balancing.method(settings, tasks=len(objective.tasks), where=where)
    backward = task_balancing.backward(
        settings, method, objective, features_are_shared=parts.model.shares_features, where=where
    )
    _check_micro_batches(stage, where=where)
    if settings.soft_sharing and not any(branch_name(task) in learnt.variables["params"] for task in objective.tasks):
        raise UserError(
            f'{where}.soft_sharing needs branches to draw near; set model.sharing="independent", or model.share_until'
        )
    variables = _warm_started(learnt.variables, stage)
    state = train_step.init_state(
        variables["params"],
        variables["batch_stats"],
        balance=method,
        tx=tx,
        ema=settings.ema_decay > 0,
        keep_state=_named(stage, lambda method: method.start(stage.view, variables["params"])),
        tasks=tuple(parts.tasks),
        trained=objective.tasks,
        key=jax.random.fold_in(jax.random.key(seed), stage.index + 1),
    )

    def jitted(objective: Objective) -> train_step.Step:
        problem = StepSpec(parts.model, parts.tasks, objective, method, backward, settings.micro_batches)
        step = train_step.make_train_step(
            problem,
            tx=tx,
            schedule=schedule,
            clip_norm=settings.clip_norm,
            ema_decay=settings.ema_decay,
            soft_sharing_strength=settings.soft_sharing,
            skip_not_finite=skip_not_finite,
        )
        return jax.jit(step, donate_argnums=0, out_shardings=devices.everywhere())

    memory = _named(stage, lambda method: method.before(objective.stage, learnt.memory, learnt.variables))
    return state, {first: jitted(each) for first, each in stage.objectives.items()}, memory


def _named(stage: StagePlan, hook: Callable[[Method], PyTree | None]) -> dict[str, PyTree]:
    """What a hook of the stage's methods returns, by method, where it returns anything."""
    found = {name: hook(method) for name, method in stage.view.keep.items()}
    return {name: each for name, each in found.items() if each is not None}


def _check_micro_batches(stage: StagePlan, *, where: str) -> None:
    count = stage.settings.micro_batches
    for stream, size in stage.batch_sizes.items():
        if size % count:
            raise UserError(f"{where}.micro_batches is {count}, which does not divide the {size} images of {stream}")


def evaluated(state: train_step.TrainState) -> Mapping[str, PyTree]:
    """Returns the variables that a stage is judged by and keeps: the averaged weights where there are any."""
    params = state.ema.params if state.ema is not None else state.params
    return {"params": params, "batch_stats": state.batch_stats}
