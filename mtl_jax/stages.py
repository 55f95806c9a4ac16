"""One stage: what it trains on, and the step and state that it starts with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from mtl_jax import balancing, devices, experiment, freezing, optimizer, train_step
from mtl_jax.continual import der, ewc, replay
from mtl_jax.data import pipeline
from mtl_jax.errors import UserError
from mtl_jax.losses import Memory, Objective
from mtl_jax.models.network import branch_name
from mtl_jax.ownership import is_frozen, paths
from mtl_jax.task_gradients import Problem

SMOKE_STEPS = 2  # per stage of a smoke run


class Learnt(NamedTuple):
    """What a finished stage hands to the next."""

    variables: PyTree
    anchors: tuple[ewc.Anchor, ...]  # parameters and their importance for the tasks so far
    replay: dict[str, replay.ReplayBuffer]  # stream -> exemplars
    stages: list[dict[str, Any]]  # {"name", "metrics"} of every finished stage: the baselines so far
    train_seconds: float
    step: int  # over all stages


class StagePlan(NamedTuple):
    """The data, losses and length of one stage."""

    index: int
    name: str
    settings: Any  # of the stage, from the config
    data: dict[str, Any]  # stream (replayed ones included) -> endless batches
    # From which step on which losses are summed; what is frozen is all that changes. The first begins at 0.
    objectives: dict[int, Objective]
    own_tasks: tuple[str, ...]  # that its streams label
    consolidated: bool  # a later stage holds the parameters by their importance for this one
    learnt_tasks: tuple[str, ...]  # by the end of the stage, in the order in which they were learnt
    batch_sizes: dict[str, int]  # images of each stream in a step
    steps_per_epoch: int
    total_steps: int


def plan(config: Any, parts: experiment.Experiment, index: int, learnt: Learnt) -> StagePlan:
    """Decides what a stage trains on: its own streams, replayed exemplars, distillation from the network before.

    Args:
        config: the resolved configuration.
        parts: what it describes.
        index: of the stage in `config.order`.
        learnt: what the stages before it left.
    """
    name = config.order[index]
    settings = config.stages[name]
    data, objective_streams, weights = {}, {}, {}
    seeds = iter(np.random.SeedSequence([config.seed, index]).generate_state(2 * len(config.streams)).tolist())
    batch_sizes, steps_per_epoch, groups = {}, 0, {}
    for stream in settings.streams:
        source = experiment.source(parts, stream, training=True)
        data[stream] = experiment.train_batches(parts, stream, source, seed=next(seeds), shared=True)
        objective_streams[stream], weights[stream] = tuple(config.streams[stream].labels), 1.0
        groups[stream] = (stream,)
        batch_size = config.streams[stream].batch_size
        steps_per_epoch = steps_per_epoch or pipeline.steps_per_epoch(source, batch_size)
        batch_sizes[stream] = batch_size
    for stream, buffer in learnt.replay.items():
        if settings.replay_batch_size and stream not in settings.streams:
            replayed, size = f"{stream}_replay", settings.replay_batch_size
            # Outputs were stored for whole images, so those come back as they were.
            extra = _stored_outputs(config, stream, buffer) if settings.der_weight else {}
            data[replayed] = experiment.train_batches(
                parts,
                stream,
                buffer,
                seed=next(seeds),
                batch_size=size,
                shared=True,
                augmented=not extra,
                extra_labels=extra,
            )
            objective_streams[replayed] = tuple(config.streams[stream].labels)
            weights[replayed] = settings.replay_weight
            size_px = experiment.train_image_size(parts, stream)
            host = next(
                (name for name in settings.streams if experiment.train_image_size(parts, name) == size_px), None
            )
            groups[host or replayed] = (*groups.get(host, ()), replayed)
            batch_sizes[replayed] = size
    own = _tasks(config, (name,))
    old = _tasks(config, config.order[:index])
    steps = SMOKE_STEPS if config.smoke else max(1, math.ceil(settings.epochs * steps_per_epoch))
    objective = Objective(
        streams=objective_streams,
        groups=tuple(groups.values()),
        stream_weights=weights,
        loss_weights=dict(settings.loss_weights),
        distilled={
            task: settings.lwf_weight * settings.lwf_weights.get(task, 1.0)
            for task in old
            if settings.lwf_weight and task not in own
        },
        old_tasks=old,
        feature_weight=settings.lwf_feature_weight,
        der_weight=settings.der_weight,
        ewc_strength=settings.ewc_strength,
        reference_tasks=_reference_tasks(settings, objective_streams, own=own, old=old, where=f"config.stages.{name}"),
    )
    where = f"config.stages.{name}.freeze"
    phases = freezing.phases(
        [freezing.parse(rule, where=where) for rule in settings.freeze],
        steps_per_epoch=steps_per_epoch,
        total_steps=steps,
    )
    _check_frozen(phases, learnt.variables["params"], where=where)
    return StagePlan(
        index=index,
        name=name,
        settings=settings,
        data=data,
        objectives={
            first: dataclasses.replace(
                objective, frozen=frozen, train_batch_norm=_batch_norm(parts, settings, frozen, own=own, old=old)
            )
            for first, frozen in phases.items()
        },
        own_tasks=own,
        consolidated=any(config.stages[later].ewc_strength for later in config.order[index + 1 :]),
        learnt_tasks=tuple(dict.fromkeys([*old, *own])),
        batch_sizes=batch_sizes,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps,
    )


def _stored_outputs(config: Any, stream: str, buffer: replay.ReplayBuffer) -> dict[str, str]:
    names = [der.label_name(task) for task in config.streams[stream].labels]
    return {name: name for name in names if name in buffer.class_names}


def _batch_norm(
    parts: experiment.Experiment,
    settings: Any,
    frozen: tuple[str, ...],
    *,
    own: tuple[str, ...],
    old: tuple[str, ...],
) -> bool | Callable[[str], bool]:
    """What `train_batch_norm` of a stage, and what is frozen, mean for the network's layers."""
    where = settings.train_batch_norm
    if parts.model.batch_norm_per_task and where != "nowhere":
        # Old tasks that are distilled pass through their own batch norms, which keep their statistics.
        return lambda path: path.split("/")[-1] in own and not is_frozen(path, frozen)
    if where == "nowhere" or (where == "everywhere" and not frozen):
        return where == "everywhere"
    seen = {level for task in old for level in parts.tasks[task].levels}
    fresh = {f"stride_{level}" for task in own for level in parts.tasks[task].levels if level not in seen}

    def by_batch(path: str) -> bool:
        if is_frozen(path, frozen):
            return False
        return where == "everywhere" or any(path.endswith(level) for level in fresh)

    return by_batch


def _reference_tasks(
    settings: Any, streams: Mapping[str, tuple[str, ...]], *, own: tuple[str, ...], old: tuple[str, ...], where: str
) -> tuple[str, ...]:
    """The old tasks whose replayed exemplars the new gradient must not oppose."""
    if not settings.agem or not old:
        return ()
    replayed = {task for stream, tasks in streams.items() if stream not in settings.streams for task in tasks}
    found = tuple(task for task in old if task in replayed and task not in own)
    if not found:
        raise UserError(
            f"{where}.agem needs exemplars of an old task; set replay_images of an earlier stage and replay_batch_size "
            "of this one"
        )
    if settings.balance != "sum":
        raise UserError(f'{where}.agem takes the place of balance {settings.balance!r}; set balance="sum"')
    return found


def _check_frozen(phases: Mapping[int, tuple[str, ...]], params: PyTree, *, where: str) -> None:
    found = paths(params)
    for patterns in phases.values():
        for pattern in patterns:
            if not any(is_frozen(path, (pattern,)) for path in found):
                parts = ", ".join(dict.fromkeys(path.split("/")[0] for path in found))
                raise UserError(f"{where} has {pattern!r}, which matches no parameter; they lie in {parts}")
        if all(is_frozen(path, patterns) for path in found):
            raise UserError(f"{where} is {', '.join(patterns)}, which leaves no parameter to train; freeze less")


def _warm_started(variables: PyTree, stage: StagePlan) -> PyTree:
    """Fills the branches of the stage's own tasks from that of an earlier one, wherever path and shape agree."""
    if not stage.settings.warm_start:
        return variables
    source, where = branch_name(stage.settings.warm_start), f"config.stages.{stage.name}.warm_start"
    own = [branch_name(task) for task in stage.own_tasks]
    if source not in variables["params"] or source in own:
        raise UserError(f"{where} is {stage.settings.warm_start!r}; expected another task that has a branch")

    def filled(collection: Mapping[str, PyTree]) -> dict[str, PyTree]:
        given = dict(jax.tree_util.tree_leaves_with_path(collection[source]))

        def fill(path: tuple, leaf: Any) -> Any:
            found = given.get(path)
            return found if found is not None and found.shape == leaf.shape else leaf

        return {**collection, **{name: jax.tree_util.tree_map_with_path(fill, collection[name]) for name in own}}

    return {name: filled(collection) for name, collection in variables.items()}


def _tasks(config: Any, stages: tuple[str, ...]) -> tuple[str, ...]:
    streams = [stream for stage in stages for stream in config.stages[stage].streams]
    return tuple(dict.fromkeys(task for stream in streams for task in config.streams[stream].labels))


def prepare(
    parts: experiment.Experiment, stage: StagePlan, learnt: Learnt, *, seed: int
) -> tuple[train_step.TrainState, dict[int, train_step.Step], Memory]:
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
        backbone_rate=settings.backbone_rate,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        clip_norm=settings.clip_norm,
    )
    where = f"config.stages.{stage.name}"
    method = balancing.method(settings, tasks=len(objective.tasks), where=where)
    backward = balancing.backward(
        settings, method, objective, features_are_shared=not parts.model.batch_norm_per_task, where=where
    )
    _check_micro_batches(stage, where=where)
    variables = _warm_started(learnt.variables, stage)
    state = train_step.init_state(
        variables["params"],
        variables["batch_stats"],
        balance=method,
        tx=tx,
        ema=settings.ema_decay > 0,
        path=settings.ewc_importance == "si" and stage.consolidated,
        tasks=objective.tasks,
        key=jax.random.fold_in(jax.random.key(seed), stage.index + 1),
    )

    def jitted(objective: Objective) -> train_step.Step:
        problem = Problem(parts.model, parts.tasks, objective, method, backward, settings.micro_batches)
        step = train_step.make_train_step(problem, tx=tx, schedule=schedule, ema_decay=settings.ema_decay)
        return jax.jit(step, donate_argnums=0, out_shardings=devices.everywhere())

    memory = Memory(
        teacher=learnt.variables if objective.distilled or objective.holding else None,
        anchors=learnt.anchors if settings.ewc_strength else (),
    )
    return state, {first: jitted(each) for first, each in stage.objectives.items()}, memory


def _check_micro_batches(stage: StagePlan, *, where: str) -> None:
    count = stage.settings.micro_batches
    for stream, size in stage.batch_sizes.items():
        if size % count:
            raise UserError(f"{where}.micro_batches is {count}, which does not divide the {size} images of {stream}")


def evaluated(state: train_step.TrainState) -> Mapping[str, PyTree]:
    """Returns the variables that a stage is judged by and keeps: the averaged weights where there are any."""
    params = state.ema.params if state.ema is not None else state.params
    return {"params": params, "batch_stats": state.batch_stats}
