"""Initial state and steps of a planned stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import PyTree

from mtl_jax import experiment
from mtl_jax.continual.method import Method, Starting
from mtl_jax.errors import UserError
from mtl_jax.models.layers import branch_name
from mtl_jax.models.ownership import counterpart, owner_of
from mtl_jax.training import optimizer, task_balancing, train_step
from mtl_jax.training.losses import Backward, Objective, StepSpec
from mtl_jax.training.stage_plan import StagePlan, StageResult


def _warm_start(variables: PyTree, stage: StagePlan) -> PyTree:
    """Fills branch, norms and patches of the stage's own tasks from an earlier one's, wherever path and shape agree.

    A task that gets classes has learnt its own.
    """
    source, location = stage.settings.warm_start, f"config.stages.{stage.name}.warm_start"
    if not source:
        return variables
    leaves_by_path = {_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}
    new_tasks = tuple(task for task in stage.own_tasks if not stage.view.tasks[task].classes_of(stage.name))
    copied = 0

    def fill(path: tuple, leaf: Any) -> Any:
        nonlocal copied
        owner = owner_of(_names(path), new_tasks)
        source_path = _names(path) if owner is None else counterpart(_names(path), owner, source)
        source_leaf = leaves_by_path.get(source_path)
        if source_path == _names(path) or source_leaf is None or source_leaf.shape != leaf.shape:
            return leaf
        copied += 1
        return source_leaf

    started_variables = jax.tree_util.tree_map_with_path(fill, variables)
    if not copied:
        raise UserError(f"{location}: expected a task that has a branch, norms or patches of its own, found {source!r}")
    return started_variables


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(entry.key for entry in path)


class StageChoices(NamedTuple):
    """Choices for the steps of a stage, from its settings."""

    method: optax.GradientTransformationExtraArgs  # of balancing
    backward: Backward
    variables: PyTree  # that the stage starts from


def choose(setup: experiment.Experiment, stage: StagePlan, variables: PyTree) -> StageChoices:
    """Makes a stage's balancing, and fills what its tasks start from; computes nothing.

    Args:
        setup: of the run.
        stage: that is planned.
        variables: as the stages before it left them, or their shapes.

    Raises:
        UserError: settings of the stage that do not fit each other or the network.
    """
    settings, objective, location = stage.settings, stage.objectives[0], f"config.stages.{stage.name}"
    method = task_balancing.method(settings, tasks=len(objective.tasks), location=location)
    backward = task_balancing.backward(
        settings, method, objective, features_are_shared=setup.model.shares_features, location=location
    )
    _check_micro_batches(stage, location=location)
    if settings.soft_sharing and not any(branch_name(task) in variables["params"] for task in objective.tasks):
        raise UserError(
            f"{location}.soft_sharing: expected 0 without branches to draw near, found {settings.soft_sharing:g}; set "
            'model.sharing="independent", or model.share_until'
        )
    return StageChoices(method, backward, _warm_start(variables, stage))


def prepare(
    setup: experiment.Experiment, stage: StagePlan, result: StageResult, *, seed: int, skip_not_finite: bool = False
) -> tuple[train_step.TrainState, dict[int, train_step.Step], dict[str, PyTree]]:
    """Builds a stage's state at step 0, its steps by when each begins, and what they read of earlier stages."""
    settings, objective = stage.settings, stage.objectives[0]
    method, backward, variables = choose(setup, stage, result.variables)
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
    state = train_step.init_state(
        variables["params"],
        variables["batch_stats"],
        balance=method,
        tx=tx,
        ema=settings.ema_decay > 0,
        keep_state=_hook_results(stage, lambda method: method.start(stage.view, variables["params"])),
        tasks=tuple(setup.tasks),
        trained_tasks=objective.tasks,
        key=jax.random.fold_in(jax.random.key(seed), stage.index + 1),
    )

    def step_of(objective: Objective) -> train_step.Step:
        problem = StepSpec(setup.model, setup.tasks, objective, method, backward, settings.micro_batches)
        return train_step.make_train_step(
            problem,
            tx=tx,
            schedule=schedule,
            clip_norm=settings.clip_norm,
            ema_decay=settings.ema_decay,
            soft_sharing_strength=settings.soft_sharing,
            skip_not_finite=skip_not_finite,
        )

    starting = Starting(objective.stage, result.memory, result.variables)
    memory = _hook_results(stage, lambda method: method.before(starting))
    return state, {first: step_of(objective) for first, objective in stage.objectives.items()}, memory


def _hook_results(stage: StagePlan, hook: Callable[[Method], PyTree | None]) -> dict[str, PyTree]:
    """Results of a hook of the stage's methods, by method; None is left out."""
    hook_results = {name: hook(method) for name, method in stage.view.keep.items()}
    return {name: hook_result for name, hook_result in hook_results.items() if hook_result is not None}


def _check_micro_batches(stage: StagePlan, *, location: str) -> None:
    count = stage.settings.micro_batches
    for stream, size in stage.batch_sizes.items():
        if size % count:
            fits = max(divisor for divisor in range(1, min(size, count) + 1) if size % divisor == 0)
            raise UserError(
                f"{location}.micro_batches: expected a divisor of the {size} images of {stream}, such as {fits}, found "
                f"{count}"
            )


def evaluated(state: train_step.TrainState) -> Mapping[str, PyTree]:
    """Returns the variables that a stage is judged by and keeps: the averaged weights where there are any."""
    params = state.ema.params if state.ema is not None else state.params
    return {"params": params, "batch_stats": state.batch_stats}
