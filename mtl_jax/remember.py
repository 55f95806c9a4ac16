"""What a finished stage keeps for the later ones: how much its parameters matter, and exemplars of its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from mtl_jax import experiment
from mtl_jax.continual import ewc, mas, replay, si
from mtl_jax.errors import UserError
from mtl_jax.models import multi_task
from mtl_jax.stages import Learnt, StagePlan
from mtl_jax.tasks.base import Task
from mtl_jax.train_step import TrainState

CANDIDATES = 2000  # training images that exemplars are chosen among; decoding more would take minutes


def anchors(
    config: Any,
    parts: experiment.Experiment,
    stage: StagePlan,
    learnt: Learnt,
    state: TrainState,
    variables: Mapping[str, PyTree],
) -> tuple[ewc.Anchor, ...]:
    """Returns what holds the parameters in the later stages, if one of them asks for it.

    Args:
        config: the resolved configuration.
        parts: what it describes.
        stage: that has just been trained.
        learnt: what the stages before it left.
        state: at its end.
        variables: that are kept of it.

    Raises:
        UserError: the stage's tasks do not have what its `ewc_importance` needs.
    """
    if not stage.consolidated:
        return learnt.anchors
    if stage.settings.ewc_importance == "si":
        fresh = si.importance(state.path, learnt.variables["params"], variables["params"])
    else:
        fresh = _importance(config, parts, stage, variables)
    settings = stage.settings
    return jax.device_get(
        ewc.consolidate(learnt.anchors, variables["params"], fresh, mode=settings.ewc_mode, decay=settings.ewc_decay)
    )


def _importance(config: Any, parts: experiment.Experiment, stage: StagePlan, variables: Mapping[str, PyTree]) -> PyTree:
    """The parameters' importance for the stage's own tasks, on training images without augmentation."""
    kind, total = stage.settings.ewc_importance, None
    for number, stream in enumerate(stage.settings.streams):
        source = experiment.source(parts, stream, training=True)
        data = experiment.train_batches(parts, stream, source, seed=config.seed, augmented=False)
        batches = max(1, min(stage.settings.ewc_examples, len(source)) // config.streams[stream].batch_size)
        tasks = experiment.stream_tasks(parts, stream)
        answer = answers(parts.model, variables["batch_stats"])
        if kind == "mas":
            functions = [outputs(answer, tasks)]
        elif kind == "exact":
            functions = [log_probabilities(answer, task) for task in tasks.values()]
        else:
            functions = [{"empirical": labelled_loss, "sampled": sampled_loss}[kind](answer, tasks)]
        for function in functions:
            examples = (data[position] for position in range(batches))
            if kind == "mas":
                fresh = mas.importance(function, variables["params"], examples)
            else:
                key = jax.random.fold_in(jax.random.key(config.seed), number)
                fresh = ewc.fisher_diagonal(function, variables["params"], examples, kind, key=key)
            total = fresh if total is None else jax.tree.map(jnp.add, total, fresh)
    return total


Answers = Callable[[PyTree, Mapping[str, Any], tuple[str, ...]], dict[str, Array]]


def answers(model: Any, batch_stats: PyTree) -> Answers:
    """Returns `(params, example, tasks) -> {task: raw outputs f32[1, ...]}`, with running statistics."""

    def answer(params: PyTree, example: Mapping[str, Any], tasks: tuple[str, ...]) -> dict[str, Array]:
        variables = {"params": params, "batch_stats": batch_stats}
        return multi_task.apply_eval(model, variables, example["image"][None], tasks=tasks, finish=False)

    return answer


def outputs(answer: Answers, tasks: Mapping[str, Task]) -> Callable[..., Float[Array, " outputs"]]:
    """Returns `(params, example) -> what the head emits for the tasks`, in one vector."""

    def function(params: PyTree, example: Mapping[str, Any]) -> Float[Array, " outputs"]:
        raw = answer(params, example, tuple(tasks))
        return jnp.concatenate([raw[name].ravel() for name in tasks])

    return function


def labelled_loss(answer: Answers, tasks: Mapping[str, Task]) -> Callable[..., Float[Array, ""]]:
    """Returns `(params, example) -> loss` towards the example's labels."""

    def function(params: PyTree, example: Mapping[str, Any]) -> Float[Array, ""]:
        raw = answer(params, example, tuple(tasks))
        labels = jax.tree.map(lambda leaf: leaf[None], example["labels"])
        size = _size(example)
        return jnp.stack([task.loss(raw[name], labels[name], size)[0] for name, task in tasks.items()]).sum()

    return function


def sampled_loss(answer: Answers, tasks: Mapping[str, Task]) -> Callable[..., Float[Array, ""]]:
    """Returns `(params, example, key) -> loss` towards labels drawn from the network's own answers."""

    def function(params: PyTree, example: Mapping[str, Any], key: Array) -> Float[Array, ""]:
        raw = answer(params, example, tuple(tasks))
        keys = jax.random.split(key, len(tasks))
        drawn = zip(tasks.items(), keys, strict=True)
        return jnp.stack([task.sampled_loss(raw[name], _size(example), key) for (name, task), key in drawn]).sum()

    return function


def log_probabilities(answer: Answers, task: Task) -> Callable[..., Float[Array, " answers"]]:
    """Returns `(params, example) -> log-probability of every answer`.

    Raises:
        UserError: the task's answers are too many to list.
    """
    read = task.log_probabilities
    if read is None:
        raise UserError(
            f'ewc_importance="exact" needs a task whose answers can be listed, and {task.name} ({task.kind}) is none; '
            'use "sampled", which estimates the same'
        )

    def function(params: PyTree, example: Mapping[str, Any]) -> Float[Array, " answers"]:
        return read(answer(params, example, (task.name,))[task.name])[0]

    return function


def _size(example: Mapping[str, Any]) -> tuple[int, int]:
    return example["image"].shape[0], example["image"].shape[1]


def exemplars(
    config: Any, parts: experiment.Experiment, stage: StagePlan, learnt: Learnt
) -> dict[str, replay.ReplayBuffer]:
    """Returns the exemplars of all streams so far: the older ones, and those that the stage is to leave.

    Args:
        config: the resolved configuration.
        parts: what it describes.
        stage: that has just been trained.
        learnt: what the stages before it left.
    """
    buffers, settings = dict(learnt.replay), stage.settings
    if not settings.replay_images or stage.index == len(config.order) - 1:
        return buffers
    for number, stream in enumerate(settings.streams):
        generator = np.random.default_rng([config.seed, stage.index, number])
        source = experiment.source(parts, stream, training=True)
        candidates = generator.permutation(len(source))[:CANDIDATES]
        buffers[stream] = replay.fill(
            experiment.Subset(source, candidates.tolist()),
            count=settings.replay_images,
            selection=settings.replay_selection,
            generator=generator,
            max_side_px=settings.replay_max_side,
        )
    return buffers
