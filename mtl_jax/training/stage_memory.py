"""What a finished stage keeps for the later ones: how much its parameters matter, and exemplars of its data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from mtl_jax import experiment
from mtl_jax.continual import der, ewc, mas, replay, si
from mtl_jax.data import pipeline
from mtl_jax.data.sources import registry
from mtl_jax.errors import UserError
from mtl_jax.models import multi_task
from mtl_jax.tasks.base import Task
from mtl_jax.training.stage_plan import StagePlan, StageResult
from mtl_jax.training.train_step import TrainState

CANDIDATES = 2000  # training images that exemplars are chosen among; decoding more would take minutes


def anchors(
    config: Any,
    parts: experiment.Experiment,
    stage: StagePlan,
    learnt: StageResult,
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
            examples = (pipeline.without_ids(data[position]) for position in range(batches))
            if kind == "mas":
                fresh = mas.importance(function, variables["params"], examples)
            else:
                key = jax.random.fold_in(jax.random.key(config.seed), number)
                fresh = ewc.fisher_diagonal(function, variables["params"], examples, kind, key=key)
            total = fresh if total is None else jax.tree.map(jnp.add, total, fresh)
    return total


def check(parts: experiment.Experiment, stage: StagePlan) -> None:
    """Checks before a stage is trained that its importance can be computed.

    Raises:
        UserError: the stage's tasks do not have what its `ewc_importance` needs.
    """
    if stage.consolidated and stage.settings.ewc_importance == "exact":
        for task in stage.own_tasks:
            _reader(parts.tasks[task])


Answers = Callable[[PyTree, Mapping[str, Any], tuple[str, ...]], dict[str, Array]]


def answers(model: Any, batch_stats: PyTree) -> Answers:
    """Returns `(params, example, tasks) -> {task: raw outputs f32[1, ...]}`, with running statistics."""

    def answer(params: PyTree, example: Mapping[str, Any], tasks: tuple[str, ...]) -> dict[str, Array]:
        variables = {"params": params, "batch_stats": batch_stats}
        return multi_task.eval_raw(model, variables, example["image"][None], tasks=tasks)[0]

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
    read = _reader(task)

    def function(params: PyTree, example: Mapping[str, Any]) -> Float[Array, " answers"]:
        return read(answer(params, example, (task.name,))[task.name])[0]

    return function


def _reader(task: Task) -> Callable[[Array], Array]:
    if task.log_probabilities is None:
        raise UserError(
            f'ewc_importance="exact" needs a task whose answers can be listed, and {task.name} ({task.kind}) is none; '
            'use "sampled", which estimates the same'
        )
    return task.log_probabilities


def _size(example: Mapping[str, Any]) -> tuple[int, int]:
    return example["image"].shape[0], example["image"].shape[1]


def exemplars(
    config: Any, parts: experiment.Experiment, stage: StagePlan, learnt: StageResult, variables: Mapping[str, PyTree]
) -> dict[str, replay.ReplayBuffer]:
    """Returns the exemplars of all streams so far: the older ones, and those that the stage is to leave.

    Args:
        config: the resolved configuration.
        parts: what it describes.
        stage: that has just been trained.
        learnt: what the stages before it left.
        variables: that are kept of it.
    """
    buffers, settings = dict(learnt.replay), stage.settings
    if not settings.replay_images or stage.index == len(config.order) - 1:
        return buffers
    for number, stream in enumerate(settings.streams):
        generator = np.random.default_rng([config.seed, stage.index, number])
        source = experiment.source(parts, stream, training=True)
        candidates = generator.permutation(len(source))[:CANDIDATES]
        seen = NetworkView(parts, stream, variables)
        buffer = replay.fill(
            experiment.Subset(source, candidates.tolist()),
            count=settings.replay_images,
            selection=settings.replay_selection,
            generator=generator,
            describe=seen,
            max_side_px=settings.replay_max_side,
            max_bytes=int(settings.replay_max_mb * 1e6) or None,
        )
        later = [config.stages[name] for name in config.order[stage.index + 1 :]]
        buffers[stream] = seen.with_outputs(buffer) if any(each.der_weight for each in later) else buffer
    return buffers


class NetworkView:
    """What the network makes of a stream's samples, whole and unaugmented, one by one."""

    def __init__(self, parts: experiment.Experiment, stream: str, variables: Mapping[str, PyTree]) -> None:
        self._parts, self._stream = parts, stream
        self._tasks = experiment.stream_tasks(parts, stream)
        self._variables = jax.tree.map(jnp.asarray, dict(variables))  # transferred once

    def features(self, source: registry.Source) -> Float[np.ndarray, "samples channels"]:
        """Returns the mean of each sample's coarsest features, those of the task's own branch where it has one."""

        @jax.jit
        def pooled(variables: PyTree, example: Mapping[str, Any]) -> Float[Array, " channels"]:
            image = example["image"][None]
            shown = multi_task.eval_raw(self._parts.model, variables, image, tasks=tuple(self._tasks))[1]
            own = {name: x for name, x in shown.items() if "/" in name} or shown
            coarsest = min(x.shape[1] for x in own.values())
            return jnp.concatenate([x[0].mean((0, 1)) for _, x in sorted(own.items()) if x.shape[1] == coarsest])

        return np.stack([np.asarray(pooled(self._variables, example)) for example in self._examples(source)])

    def losses(self, source: registry.Source) -> Float[np.ndarray, "samples"]:
        """Returns each sample's loss, summed over its tasks."""
        answer = answers(self._parts.model, self._variables["batch_stats"])
        loss = jax.jit(labelled_loss(answer, self._tasks))
        params = self._variables["params"]
        return np.array([float(loss(params, example)) for example in self._examples(source)], np.float32)

    def with_outputs(self, buffer: replay.ReplayBuffer) -> replay.ReplayBuffer:
        """Adds the network's outputs to each exemplar, as labels named by `der.label_name`."""
        answer = jax.jit(answers(self._parts.model, self._variables["batch_stats"]), static_argnums=2)
        samples = []
        for sample, example in zip(buffer.samples, self._examples(buffer), strict=True):
            raw = answer(self._variables["params"], example, tuple(self._tasks))
            stored = {der.label_name(task): {"outputs": np.asarray(value[0])} for task, value in raw.items()}
            samples.append({**sample, "labels": sample["labels"] | stored})
        names = {der.label_name(task): () for task in self._tasks}
        return replay.ReplayBuffer(tuple(samples), dict(buffer.class_names) | names)

    def _examples(self, source: registry.Source) -> Iterator[Any]:
        return experiment.examples(self._parts, self._stream, source)
