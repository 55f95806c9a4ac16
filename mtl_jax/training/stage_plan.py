"""What a stage trains on, for how long, and which losses it sums: decided before its first step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from mtl_jax import experiment
from mtl_jax.continual import der, ewc, gpm, paste, replay
from mtl_jax.data import pipeline, sampling
from mtl_jax.data.sources import registry
from mtl_jax.errors import UserError
from mtl_jax.models.ownership import owner_of
from mtl_jax.models.patterns import expanded, matches, paths
from mtl_jax.training import freezing, projection_memory
from mtl_jax.training.losses import Objective

SMOKE_STEPS = 2  # per stage of a smoke run


class StageResult(NamedTuple):
    """What a finished stage hands to the next."""

    variables: PyTree
    anchors: tuple[ewc.Anchor, ...]  # parameters and their importance for the tasks so far
    replay: Mapping[str, replay.ReplayBuffer]  # stream -> exemplars
    stages: list[dict[str, Any]]  # {"name", "metrics"} of every finished stage: the baselines so far
    train_seconds: float
    step: int  # over all stages
    held: gpm.Held = gpm.NOTHING  # what updates leave alone
    peak_memory_mb: float | None = None  # of the processes that trained them


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


class _Feeds(NamedTuple):
    """The streams of a stage, replayed ones included, each by its name."""

    data: dict[str, Any]  # endless batches
    tasks: dict[str, tuple[str, ...]]  # that it labels
    weights: dict[str, float]  # of its losses
    batch_sizes: dict[str, int]
    sizes: dict[str, int]  # images of the stage's own streams
    # streams that pass the network together, by the first of them
    groups: dict[str, tuple[str, ...]]


def plan(config: Any, parts: experiment.Experiment, index: int, learnt: StageResult) -> StagePlan:
    """Decides what a stage trains on: its own streams, replayed exemplars, distillation from the network before.

    Args:
        config: the resolved configuration.
        parts: what it describes.
        index: of the stage in `config.order`.
        learnt: what the stages before it left.
    """
    name = config.order[index]
    settings, where = config.stages[name], f"config.stages.{name}"
    seeds = iter(np.random.SeedSequence([config.seed, index]).generate_state(2 * len(config.streams)).tolist())
    feeds = _feeds(config, parts, settings, learnt, seeds, where=where)
    steps_per_epoch, steps, drawn = _length(config, settings, feeds, seeds, where=where)
    own, old = _tasks(config, (name,)), _tasks(config, config.order[:index])
    objective = _objective(settings, feeds, own=own, old=old, where=where)
    phases = _phases(parts, settings, learnt.variables["params"], steps_per_epoch, steps, where=where)
    objectives = {
        first: dataclasses.replace(
            objective,
            frozen=(*frozen, *learnt.held.whole),
            train_batch_norm=_batch_norm(parts, settings, frozen, own=own, old=old),
        )
        for first, frozen in phases.items()
    }
    projection_memory.layers(parts, settings, learnt.variables["params"], where=where)
    projection_memory.require_still(config, parts, index, learnt.held, learnt.variables, objectives.values())
    return StagePlan(
        index=index,
        name=name,
        settings=settings,
        data=feeds.data,
        objectives=objectives,
        own_tasks=own,
        consolidated=any(config.stages[later].ewc_strength for later in config.order[index + 1 :]),
        learnt_tasks=tuple(dict.fromkeys([*old, *own])),
        batch_sizes=feeds.batch_sizes,
        rates=_rates(parts, settings, learnt.variables["params"], where=where),
        drawn=drawn,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps,
    )


def _feeds(
    config: Any, parts: experiment.Experiment, settings: Any, learnt: StageResult, seeds: Iterator[int], *, where: str
) -> _Feeds:
    """The stage's own streams, then exemplars of old ones, which pass the network beside one of the same size."""
    feeds = _Feeds({}, {}, {}, {}, {}, {})
    for stream in settings.streams:
        source = experiment.source(parts, stream, training=True)
        feeds.data[stream] = experiment.train_batches(parts, stream, source, seed=next(seeds), shared=True)
        feeds.tasks[stream], feeds.weights[stream] = tuple(config.streams[stream].labels), 1.0
        feeds.batch_sizes[stream], feeds.sizes[stream] = config.streams[stream].batch_size, len(source)
        feeds.groups[stream] = (stream,)
    for stream, buffer in learnt.replay.items():
        if not settings.replay_batch_size or stream in settings.streams:
            continue
        replayed = _name_of_replayed(stream, taken=config.streams)
        # Outputs were stored for whole images, so those come back as they were.
        extra = _stored_outputs(config, stream, buffer) if settings.der_weight else {}
        if settings.replay_paste and settings.der_weight:
            raise UserError(
                f"{where}.der_weight compares replayed images with the outputs that were stored for them, and "
                "replay_paste changes the images; set one of them to 0"
            )
        if settings.replay_paste:
            scenes = experiment.source(parts, settings.streams[0], training=True)
            buffer = paste.PastedReplay(buffer, scenes, share=settings.replay_paste, seed=config.seed)
        feeds.data[replayed] = experiment.train_batches(
            parts,
            stream,
            buffer,
            seed=next(seeds),
            batch_size=settings.replay_batch_size,
            shared=True,
            augmented=not extra,
            extra_labels=extra,
        )
        feeds.tasks[replayed], feeds.weights[replayed] = tuple(config.streams[stream].labels), settings.replay_weight
        feeds.batch_sizes[replayed] = settings.replay_batch_size
        size = experiment.train_image_size(parts, stream)
        same_size = (own for own in settings.streams if experiment.train_image_size(parts, own) == size)
        host = next(same_size, replayed)
        feeds.groups[host] = (*feeds.groups.get(host, ()), replayed)
    return feeds


def _name_of_replayed(stream: str, *, taken: Collection[str]) -> str:
    """A name for a stream's exemplars, in batches and in the log, that no stream of the config has."""
    name = f"{stream}_replay"
    while name in taken:
        name += "_replay"
    return name


def _length(
    config: Any, settings: Any, feeds: _Feeds, seeds: Iterator[int], *, where: str
) -> tuple[int, int, tuple[str, ...]]:
    """Returns the steps of an epoch and of the stage, and whose turn each is where streams take turns."""
    first = settings.streams[0]
    steps_per_epoch = pipeline.steps_per_epoch(feeds.sizes[first], feeds.batch_sizes[first])
    if temperature := settings.sampling_temperature:
        _check_turns(settings, where=where)
        steps_per_epoch = math.ceil(steps_per_epoch / sampling.shares(feeds.sizes, temperature)[first])
    steps = SMOKE_STEPS if config.smoke else max(1, math.ceil(settings.epochs * steps_per_epoch))
    drawn = sampling.draw(feeds.sizes, temperature, steps=steps, seed=next(seeds)) if temperature else ()
    return steps_per_epoch, steps, drawn


def _objective(settings: Any, feeds: _Feeds, *, own: tuple[str, ...], old: tuple[str, ...], where: str) -> Objective:
    """The losses that the stage sums, while nothing is frozen."""
    return Objective(
        streams=feeds.tasks,
        groups=tuple(feeds.groups.values()),
        stream_weights=feeds.weights,
        loss_weights=dict(settings.loss_weights),
        distilled={
            task: settings.lwf_weight * settings.lwf_weights.get(task, 1.0)
            for task in old
            if settings.lwf_weight and task not in own
        },
        lwf_balance=settings.lwf_balance,
        old_tasks=old,
        feature_weight=settings.lwf_feature_weight,
        der_weight=settings.der_weight,
        ewc_strength=settings.ewc_strength,
        reference_tasks=_reference_tasks(settings, feeds.tasks, own=own, old=old, where=where),
        spectators=own if settings.update != "forward" else (),
        spectator_weight=0.0 if settings.update == "weight" else 1.0,
    )


def _phases(
    parts: experiment.Experiment, settings: Any, params: PyTree, steps_per_epoch: int, steps: int, *, where: str
) -> dict[int, tuple[str, ...]]:
    """From which step on which patterns of parameters are frozen."""
    where = f"{where}.freeze"
    rules = [freezing.parse(rule, where=where) for rule in settings.freeze]
    stages = experiment.backbone_stages(parts, settings.freeze)
    rules = [rule._replace(pattern=each) for rule in rules for each in expanded(rule.pattern, stages)]
    phases = freezing.phases(rules, steps_per_epoch=steps_per_epoch, total_steps=steps)
    _check_frozen(phases, params, where=where)
    return phases


def _rates(parts: experiment.Experiment, settings: Any, params: PyTree, *, where: str) -> dict[str, float]:
    """Pattern of parameters -> factor on the learning rate."""
    rates = {"backbone": settings.backbone_rate, "*/backbone": settings.backbone_rate}
    stages = experiment.backbone_stages(parts, settings.rates)
    for pattern, factor in dict(settings.rates).items():
        for each in expanded(pattern, stages):
            rates[each] = rates.get(each, 1.0) * factor
    _check_rates(rates, params, where=f"{where}.rates")
    return rates


def _stored_outputs(config: Any, stream: str, buffer: registry.Source) -> dict[str, str]:
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

        def in_own_pass(path: str) -> bool:
            # Old tasks that are distilled pass through their own batch norms, which keep their statistics.
            owner = owner_of(tuple(path.split("/")), tuple(parts.tasks))
            return not matches(path, frozen) and (where == "everywhere" if owner is None else owner in own)

        return in_own_pass
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
