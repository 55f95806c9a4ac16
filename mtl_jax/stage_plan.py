"""What a stage trains on, for how long, and which losses it sums: decided before its first step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from mtl_jax import experiment, freezing
from mtl_jax.continual import der, ewc, replay
from mtl_jax.data import pipeline, sampling
from mtl_jax.errors import UserError
from mtl_jax.losses import Objective
from mtl_jax.models import multi_task
from mtl_jax.patterns import expanded, matches, paths

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
    rates: dict[str, float]  # pattern of parameters -> factor on the learning rate
    drawn: tuple[str, ...]  # the stream whose turn each step is; empty where every step takes a batch of all
    steps_per_epoch: int
    total_steps: int

    def takes(self, step: int, stream: str) -> bool:
        """Whether a step takes a batch of a stream: replayed ones have no turns."""
        return (
            not self.drawn
            or stream not in self.settings.streams
            or self.drawn[min(step, len(self.drawn) - 1)] == stream
        )

    def batches_before(self, step: int, stream: str) -> int:
        """Returns how many batches of a stream the steps before one have taken."""
        return sum(self.takes(earlier, stream) for earlier in range(step)) if self.drawn else step


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
    batch_sizes, sizes, groups = {}, {}, {}
    for stream in settings.streams:
        source = experiment.source(parts, stream, training=True)
        data[stream] = experiment.train_batches(parts, stream, source, seed=next(seeds), shared=True)
        objective_streams[stream], weights[stream] = tuple(config.streams[stream].labels), 1.0
        groups[stream] = (stream,)
        batch_sizes[stream], sizes[stream] = config.streams[stream].batch_size, len(source)
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
    where = f"config.stages.{name}"
    steps_per_epoch = pipeline.steps_per_epoch(sizes[settings.streams[0]], batch_sizes[settings.streams[0]])
    if temperature := settings.sampling_temperature:
        _check_turns(settings, where=where)
        steps_per_epoch = math.ceil(steps_per_epoch / sampling.shares(sizes, temperature)[settings.streams[0]])
    steps = SMOKE_STEPS if config.smoke else max(1, math.ceil(settings.epochs * steps_per_epoch))
    drawn = sampling.draw(sizes, temperature, steps=steps, seed=next(seeds)) if temperature else ()
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
        reference_tasks=_reference_tasks(settings, objective_streams, own=own, old=old, where=where),
        spectators=own if settings.update != "forward" else (),
        spectator_weight=0.0 if settings.update == "weight" else 1.0,
    )
    named = (*settings.freeze, *settings.rates)
    parts_of_backbone = multi_task.backbone_stages(parts.model) if any("stage_" in each for each in named) else {}
    rules = [freezing.parse(rule, where=f"{where}.freeze") for rule in settings.freeze]
    rules = [rule._replace(pattern=each) for rule in rules for each in expanded(rule.pattern, parts_of_backbone)]
    phases = freezing.phases(rules, steps_per_epoch=steps_per_epoch, total_steps=steps)
    _check_frozen(phases, learnt.variables["params"], where=f"{where}.freeze")
    rates = {"backbone": settings.backbone_rate, "*/backbone": settings.backbone_rate}
    for pattern, factor in dict(settings.rates).items():
        for each in expanded(pattern, parts_of_backbone):
            rates[each] = rates.get(each, 1.0) * factor
    _check_rates(rates, learnt.variables["params"], where=f"{where}.rates")
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
        rates=rates,
        drawn=drawn,
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
    if parts.model.norms_by_task and where != "nowhere":
        # Old tasks that are distilled pass through their own batch norms, which keep their statistics.
        others = set(parts.tasks) - set(own)
        return lambda path: path.split("/")[-1] not in others and not matches(path, frozen)
    if where == "nowhere" or (where == "everywhere" and not frozen):
        return where == "everywhere"
    seen = {level for task in old for level in parts.tasks[task].levels}
    fresh = {f"stride_{level}" for task in own for level in parts.tasks[task].levels if level not in seen}

    def by_batch(path: str) -> bool:
        if matches(path, frozen):
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


def _check_turns(settings: Any, *, where: str) -> None:
    if settings.balance != "sum" or settings.log_conflicts or settings.gradient_space != "params":
        raise UserError(
            f"{where}.sampling_temperature is {settings.sampling_temperature:g}: a step then sees one stream, whose "
            'tasks alone cannot be balanced; set balance="sum", log_conflicts=False, gradient_space="params"'
        )


def _check_rates(rates: Mapping[str, float], params: PyTree, *, where: str) -> None:
    found = paths(params)
    for pattern, factor in rates.items():
        if factor < 0:
            raise UserError(f"{where}: expected factors of at least 0, found {factor} for {pattern!r}")
        if pattern not in ("backbone", "*/backbone") and not any(matches(path, (pattern,)) for path in found):
            raise UserError(f"{where} has {pattern!r}, which matches no parameter; {_where_they_lie(found)}")


def _where_they_lie(found: Sequence[str]) -> str:
    return f"they lie in {', '.join(dict.fromkeys(path.split('/')[0] for path in found))}"


def _check_frozen(phases: Mapping[int, tuple[str, ...]], params: PyTree, *, where: str) -> None:
    found = paths(params)
    for patterns in phases.values():
        for pattern in patterns:
            if not any(matches(path, (pattern,)) for path in found):
                raise UserError(f"{where} has {pattern!r}, which matches no parameter; {_where_they_lie(found)}")
        if all(matches(path, patterns) for path in found):
            raise UserError(f"{where} is {', '.join(patterns)}, which leaves no parameter to train; freeze less")


def _tasks(config: Any, stages: tuple[str, ...]) -> tuple[str, ...]:
    streams = [stream for stage in stages for stream in config.stages[stage].streams]
    return tuple(dict.fromkeys(task for stream in streams for task in config.streams[stream].labels))
