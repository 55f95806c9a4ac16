"""Losses of a stage: of every stream's labels, and the terms of continual-learning methods."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from mtl_jax.continual.method import Method, Passed, StageTasks, Term
from mtl_jax.models import multi_task
from mtl_jax.models.layers import ByBatch
from mtl_jax.models.patterns import change_where
from mtl_jax.tasks.base import Task
from mtl_jax.training import filling, unlabelled

# "summed": one pass back for each group of streams, for the plain sum. "stacked": one for each task that a group
# carries. "weighted": one for each group, for methods that look at the losses alone. "features": one through what tasks
# share, and the tasks' gradients at the deepest features that all of them share.
Backward = Literal["summed", "stacked", "weighted", "features"]

NO_TASKS = StageTasks()


@dataclasses.dataclass(frozen=True)
class Objective:
    """Which losses a stage sums, and with what weight."""

    streams: Mapping[str, tuple[str, ...]]  # stream -> the tasks that it labels
    # Streams whose images have one size and pass through the network as one batch, with common batch statistics.
    groups: tuple[tuple[str, ...], ...]
    stream_weights: Mapping[str, float]
    loss_weights: Mapping[str, float]  # task -> factor
    stage: StageTasks = NO_TASKS
    keep: Mapping[str, Method] = dataclasses.field(default_factory=dict)  # what keeps old tasks
    update: str = "forward"  # a key of `unlabelled.UPDATES`
    train_batch_norm: ByBatch = True  # or the paths of the layers to train it in
    frozen: tuple[str, ...] = ()  # patterns of the parameters that the stage leaves as they are
    pseudo_threshold: float | None = None  # from which the average's predictions fill in classes that are not labelled

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every task with a loss, in order of first appearance."""
        return self.carried(tuple(self.streams))

    @property
    def opposed(self) -> tuple[str, ...]:
        """The tasks whose gradient only bounds that of the others."""
        return tuple(task for method in self.keep.values() for task in method.opposed(self.stage))

    def of(self, task_names: tuple[str, ...]) -> Objective:
        """The losses that a batch of some of the streams has."""
        streams = {stream: tasks for stream, tasks in self.streams.items() if stream in task_names}
        groups = (tuple(stream for stream in group if stream in task_names) for group in self.groups)
        return dataclasses.replace(self, streams=streams, groups=tuple(group for group in groups if group))

    def carried(self, group: tuple[str, ...]) -> tuple[str, ...]:
        """The tasks for which a group of streams gives a loss: by its labels, by what keeps old tasks, or both."""
        kept_tasks = [task for method in self.keep.values() for task in method.gives(self.stage)]
        return tuple(dict.fromkeys([*self._labelled(group), *kept_tasks]))

    def computed(self, group: tuple[str, ...]) -> tuple[str, ...]:
        """The tasks whose outputs such a loss needs."""
        read_tasks = [task for method in self.keep.values() for task in method.reads(self.stage)]
        own_tasks = self.stage.own if unlabelled.UPDATES[self.update].computes else ()
        return tuple(dict.fromkeys([*self._labelled(group), *read_tasks, *own_tasks]))

    def watching(self, group: tuple[str, ...]) -> tuple[str, ...]:
        """The tasks that are computed for a group of streams although it gives no loss for them."""
        return tuple(task for task in self.computed(group) if task not in self.carried(group))

    def _labelled(self, group: tuple[str, ...]) -> list[str]:
        return [task for stream in group for task in self.streams[stream]]


class StepSpec(NamedTuple):
    """Specification of a training step: network, tasks, losses and balancing method, constant over a stage."""

    model: Any  # from `multi_task.build`
    tasks: Mapping[str, Task]  # every task of the model
    objective: Objective
    balance: optax.GradientTransformationExtraArgs
    backward: Backward
    micro_batches: int = 1  # parts that a batch is taken in


class StepInputs(NamedTuple):
    """Inputs of a gradient: parameters, statistics, methods' memory, and the batch."""

    params: PyTree
    batch_stats: PyTree
    memory: Mapping[str, PyTree]  # key of `Objective.keep` -> what its `before` gave
    batch: Mapping[str, Any]  # stream -> image and labels
    key: Array  # of the dropout
    average: PyTree = None  # variables that fill in what is not labelled; None leaves it


class LossParts(NamedTuple):
    """By-products of a pass through the network: statistics, metrics, shared features."""

    batch_stats: PyTree
    metrics: dict[str, Array]  # by "task/name"
    shared: multi_task.Features  # the deepest that all tasks share


def group_losses(
    spec: StepSpec, inputs: StepInputs, group: tuple[str, ...], *, offsets: multi_task.Features | None = None
) -> tuple[Float[Array, " carried"], LossParts]:
    """Runs one forward pass for a group of streams and returns the weighted loss of every task in it.

    Args:
        spec: the network, its tasks and the losses of the stage.
        inputs: parameters, statistics before the group, and the batch.
        group: streams whose images have one size.
        offsets: added to the deepest features that all tasks share.

    Returns:
        Losses in the order of `spec.objective.carried(group)`, and the by-products of the pass.
    """
    objective = spec.objective
    params = change_where(jax.lax.stop_gradient, inputs.params, objective.frozen)  # spares their backward pass
    watching = objective.watching(group)
    image = jnp.concatenate([inputs.batch[stream]["image"] for stream in group])
    raw, batch_stats, features, shared = multi_task.train_raw(
        spec.model,
        params,
        inputs.batch_stats,
        image,
        tasks=objective.computed(group),
        key=inputs.key,
        train_batch_norm=unlabelled.sparing(objective.train_batch_norm, watching),
        offsets=offsets,
    )
    group_pass = _forward_group(spec, inputs, group, image, raw, features)
    carried_tasks = objective.carried(group)
    values = dict.fromkeys(carried_tasks, jnp.zeros(()))
    metrics: dict[str, Array] = {}
    update_rule = unlabelled.UPDATES[objective.update]
    for loss in unlabelled.losses(spec.tasks, watching, raw, group_pass.image_size, rule=update_rule):
        values[carried_tasks[0]] += loss
    method_terms = (method.terms(group_pass, inputs.memory.get(name)) for name, method in objective.keep.items())
    for term in itertools.chain(_labelled_terms(objective, group_pass), *method_terms):
        values[term.task] += term.loss
        metrics |= term.metrics
    return jnp.stack([values[task] for task in carried_tasks]), LossParts(batch_stats, metrics, shared)


def _forward_group(
    spec: StepSpec,
    inputs: StepInputs,
    group: tuple[str, ...],
    image: Array,
    raw: Mapping[str, Array],
    features: Mapping[str, Array],
) -> Passed:
    sizes = [inputs.batch[stream]["image"].shape[0] for stream in group]
    ends = list(itertools.accumulate(sizes))
    rows = {stream: slice(end - size, end) for stream, end, size in zip(group, ends, sizes, strict=True)}
    labels: Mapping[str, Any] = {stream: inputs.batch[stream]["labels"] for stream in group}
    threshold = spec.objective.pseudo_threshold
    if threshold is not None and inputs.average is not None:
        fill_options = {"rows": rows, "image": image, "average": inputs.average, "threshold": threshold}
        labels = filling.fill_labels(spec.model, spec.tasks, labels, **fill_options)
    return Passed(
        model=spec.model,
        tasks=spec.tasks,
        stage=spec.objective.stage,
        group=group,
        labelled={stream: spec.objective.streams[stream] for stream in group},
        labels=labels,
        rows=rows,
        image=image,
        raw=raw,
        features=features,
    )


def _labelled_terms(objective: Objective, group_pass: Passed) -> Iterator[Term]:
    for stream in group_pass.group:
        for task in group_pass.labelled[stream]:
            raw, labels = group_pass.raw[task][group_pass.rows[stream]], group_pass.labels[stream][task]
            for method in objective.keep.values():
                raw = method.adjusted(task, raw, group_pass.stage)
            loss, loss_terms = group_pass.tasks[task].loss(raw, labels, group_pass.image_size)
            weight = objective.stream_weights[stream] * objective.loss_weights.get(task, 1.0)
            metrics = {f"{task}/{stream}/{name}": value for name, value in {"loss": loss, **loss_terms}.items()}
            yield Term(task, weight * loss, metrics)
