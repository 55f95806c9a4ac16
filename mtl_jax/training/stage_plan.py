"""Plan of a stage, made before its first step: streams, number of steps, and losses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from mtl_jax import experiment
from mtl_jax.config.run_settings import RunSettings
from mtl_jax.config.stage_settings import StageSettings
from mtl_jax.continual.method import Feed, Memory, Method, Phase, StageTasks, Starting
from mtl_jax.data import pipeline, sampling
from mtl_jax.data.sources.base import Source
from mtl_jax.errors import UserError
from mtl_jax.tasks.calibration import Calibration
from mtl_jax.training import exactness, trained_layers
from mtl_jax.training.losses import Objective
from mtl_jax.training.stage_view import StageView

SMOKE_STEPS = 2  # per stage of a smoke run


class StageResult(NamedTuple):
    """State passed from a finished stage to the next."""

    variables: PyTree
    memory: Memory  # of what keeps old tasks: slot -> what the stages so far have left
    stages: list[dict[str, Any]]  # {"name", "metrics"} of every finished stage: the baselines so far
    train_seconds: float
    step: int  # over all stages
    peak_memory_mb: float | None = None  # of the processes that trained them
    calibration: Mapping[str, Calibration] = MappingProxyType({})  # of the last stage's tasks


class StagePlan(NamedTuple):
    """The data, losses and length of one stage."""

    index: int
    name: str
    settings: StageSettings  # of the stage, from the config
    view: StageView  # for what keeps old tasks
    data: dict[str, Any]  # stream (replayed ones included) -> endless batches
    # From which step on which losses are summed; what is frozen is all that changes. The first begins at 0.
    objectives: dict[int, Objective]
    own_tasks: tuple[str, ...]  # that its streams label
    learnt_tasks: tuple[str, ...]  # by the end of the stage, in the order in which they were learnt
    batch_sizes: dict[str, int]  # images of each stream in a step
    rates: dict[str, float]  # pattern of parameters -> factor on the learning rate
    turns: tuple[str, ...]  # the stream whose turn each step is; empty where every step takes a batch of all
    steps_per_epoch: int
    total_steps: int

    def takes(self, step: int, stream: str) -> bool:
        """Whether a step takes a batch of a stream: replayed ones have no turns."""
        return (
            not self.turns
            or stream not in self.settings.streams
            or self.turns[min(step, len(self.turns) - 1)] == stream
        )

    def batches_before(self, step: int, stream: str) -> int:
        """Returns how many batches of a stream the steps before one have taken."""
        return sum(self.takes(past_step, stream) for past_step in range(step)) if self.turns else step


class _Feeds(NamedTuple):
    """The streams of a stage, replayed ones included, each by its name."""

    data: dict[str, Any]  # endless batches
    tasks: dict[str, tuple[str, ...]]  # that it labels
    weights: dict[str, float]  # of its losses
    batch_sizes: dict[str, int]
    sizes: dict[str, int]  # images of the stage's own streams
    # streams that pass the network together, by the first of them
    groups: dict[str, tuple[str, ...]]


def plan(
    config: RunSettings,
    setup: experiment.Experiment,
    index: int,
    result: StageResult,
    *,
    sources: Mapping[str, Source] | None = None,
) -> StagePlan:
    """Decides what a stage trains on: its own streams, replayed exemplars, distillation from the network before.

    Args:
        config: the resolved configuration.
        setup: what it describes.
        index: of the stage in `config.order`.
        result: what the stages before it left.
        sources: stream -> training images; those that are not given are opened.

    Raises:
        UserError: settings of the stage that do not fit the network, the data or each other.
    """
    view = StageView(config, setup, index, sources)
    name, location = config.order[index], view.location
    settings, params = config.stages[name], result.variables["params"]
    seeds = iter(np.random.SeedSequence([config.seed, index]).generate_state(2 * len(config.streams)).tolist())
    feeds = _feeds(config, setup, view, result, seeds)
    steps_per_epoch, steps, turns = _length(config, settings, feeds, seeds, location=location)
    tasks = _stage_tasks(config, setup, index, feeds)
    objective = _objective(settings, feeds, view.keep, tasks)
    exact = exactness.frozen_patterns(config, setup, index)
    frozen_by_methods = tuple(pattern for method in view.keep.values() for pattern in method.frozen(result.memory))
    frozen_phases = trained_layers.frozen_phases(setup, settings, params, steps_per_epoch, steps, location=location)
    phases = {
        first: Phase(
            (*frozen, *exact, *frozen_by_methods),
            trained_layers.trained_norms(setup, name, settings, (*frozen, *exact), tasks),
        )
        for first, frozen in frozen_phases.items()
    }
    starting = Starting(tasks, result.memory, result.variables, tuple(phases.values()))
    for method in view.keep.values():
        method.refuse(view, starting)
    objectives = {first: dataclasses.replace(objective, **phase._asdict()) for first, phase in phases.items()}
    exactness.refuse_moving(config, setup, index, objectives.values())
    return StagePlan(
        index=index,
        name=name,
        settings=settings,
        view=view,
        data=feeds.data,
        objectives=objectives,
        own_tasks=tasks.own,
        learnt_tasks=tuple(dict.fromkeys([*tasks.old, *tasks.own])),
        batch_sizes=feeds.batch_sizes,
        rates=trained_layers.rates(setup, settings, params, location=location),
        turns=turns,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps,
    )


def _feeds(
    config: RunSettings, setup: experiment.Experiment, view: StageView, result: StageResult, seeds: Iterator[int]
) -> _Feeds:
    """The stage's own streams, then images of old ones, which pass the network together with one of the same size."""
    feeds = _Feeds({}, {}, {}, {}, {}, {})
    for stream in view.streams:
        source = view.source(stream)
        for method in view.keep.values():
            source = method.source(view, result.memory, stream, source)
        feeds.data[stream] = experiment.train_batches(setup, stream, source, seed=next(seeds), shared=True)
        feeds.tasks[stream], feeds.weights[stream] = tuple(config.streams[stream].labels), 1.0
        feeds.batch_sizes[stream], feeds.sizes[stream] = config.streams[stream].batch_size, len(source)
        feeds.groups[stream] = (stream,)
    old: list[Feed] = []
    for method in view.keep.values():
        old = method.feeds(view, result.memory, old)
    for feed in old:
        _add(feeds, feed, config, setup, view, seed=next(seeds))
    return feeds


def _add(
    feeds: _Feeds, feed: Feed, config: RunSettings, setup: experiment.Experiment, view: StageView, *, seed: int
) -> None:
    """Adds images of an old stream under a name of their own."""
    name = _name_of_replayed(feed.stream, used_names=config.streams)
    feeds.data[name] = experiment.train_batches(
        setup,
        feed.stream,
        feed.source,
        seed=seed,
        batch_size=feed.batch_size,
        shared=True,
        augmented=feed.augmented,
        extra_labels=feed.extra_labels,
    )
    feeds.tasks[name], feeds.weights[name] = tuple(config.streams[feed.stream].labels), feed.weight
    feeds.batch_sizes[name] = feed.batch_size
    size = view.image_size(feed.stream)
    host = next((stream for stream in view.streams if view.image_size(stream) == size), name)
    feeds.groups[host] = (*feeds.groups.get(host, ()), name)


def _name_of_replayed(stream: str, *, used_names: Collection[str]) -> str:
    """A name for a stream's exemplars, in batches and in the log, that no stream of the config has."""
    name = f"{stream}_replay"
    while name in used_names:
        name += "_replay"
    return name


def _length(
    config: RunSettings, settings: StageSettings, feeds: _Feeds, seeds: Iterator[int], *, location: str
) -> tuple[int, int, tuple[str, ...]]:
    """Returns the steps of an epoch and of the stage, and whose turn each is where streams take turns."""
    first = settings.streams[0]
    steps_per_epoch = pipeline.steps_per_epoch(feeds.sizes[first], feeds.batch_sizes[first])
    if temperature := settings.sampling_temperature:
        _check_turns(settings, location=location)
        steps_per_epoch = math.ceil(steps_per_epoch / sampling.shares(feeds.sizes, temperature)[first])
    steps = SMOKE_STEPS if config.smoke else max(1, math.ceil(settings.epochs * steps_per_epoch))
    turns = sampling.draw(feeds.sizes, temperature, steps=steps, seed=next(seeds)) if temperature else ()
    return steps_per_epoch, steps, turns


def _stage_tasks(config: RunSettings, setup: experiment.Experiment, index: int, feeds: _Feeds) -> StageTasks:
    """The tasks of a stage by the part that they have in it."""
    name = config.order[index]
    own_tasks, old = config.tasks_of(name), config.tasks_of(*config.order[:index])
    extra_streams = (stream for stream in feeds.tasks if stream not in feeds.sizes)
    return StageTasks(
        own_tasks,
        old,
        tuple(dict.fromkeys(task for stream in extra_streams for task in feeds.tasks[stream])),
        {task: setup.tasks[task].before(name) for task in own_tasks if setup.tasks[task].classes_of(name)},
    )


def _objective(settings: StageSettings, feeds: _Feeds, keep: Mapping[str, Method], tasks: StageTasks) -> Objective:
    """The losses that the stage sums, while nothing is frozen."""
    return Objective(
        streams=feeds.tasks,
        groups=tuple(feeds.groups.values()),
        stream_weights=feeds.weights,
        loss_weights=dict(settings.loss_weights),
        stage=tasks,
        keep=keep,
        update=settings.update,
        pseudo_threshold=settings.pseudo_threshold if settings.pseudo_labels else None,
    )


def _check_turns(settings: StageSettings, *, location: str) -> None:
    if settings.balance != "sum" or settings.log_conflicts or settings.gradient_space != "params":
        raise UserError(
            f"{location}.sampling_temperature: expected 0 where tasks are balanced, as a step else sees the tasks "
            "of one "
            f"stream alone, found {settings.sampling_temperature:g}; set it to 0, or "
            'balance="sum", log_conflicts=False, gradient_space="params"'
        )
