"""The losses that a stage sums: of every stream's labels, and of what holds the network to what it knew."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from mtl_jax.continual import der, ewc, lwf
from mtl_jax.models import multi_task
from mtl_jax.models.layers import ByBatch
from mtl_jax.models.ownership import owner_of
from mtl_jax.models.patterns import change_where
from mtl_jax.tasks.base import Task


class Memory(NamedTuple):
    """What a stage was given of the earlier ones; a step reads it and leaves it as it is."""

    teacher: Any  # variables of the network before the stage
    anchors: tuple[ewc.Anchor, ...]  # that hold the parameters
    bases: dict[str, Any] | None = None  # kernel -> the space of its inputs that updates leave alone


@dataclasses.dataclass(frozen=True)
class Objective:
    """Which losses a stage sums, and with what weight."""

    streams: Mapping[str, tuple[str, ...]]  # stream -> the tasks that it labels
    # Streams whose images have one size and pass through the network as one batch, with common batch statistics.
    groups: tuple[tuple[str, ...], ...]
    stream_weights: Mapping[str, float]
    loss_weights: Mapping[str, float]  # task -> factor
    distilled: Mapping[str, float] = dataclasses.field(default_factory=dict)  # old task -> weight of its distillation
    lwf_balance: str = "mean"  # or "classes": what a teacher rarely sees counts as much as what it often sees
    old_tasks: tuple[str, ...] = ()  # of the stages before; they carry the distillation of features
    feature_weight: float = 0.0
    der_weight: float = 0.0  # of the distance from the outputs that replayed images were stored with
    ewc_strength: float = 0.0
    train_batch_norm: ByBatch = True  # or the paths of the layers to train it in
    reference_tasks: tuple[str, ...] = ()  # their gradient only bars the way to opposing ones (A-GEM)
    frozen: tuple[str, ...] = ()  # patterns of the parameters that the stage leaves as they are
    # Tasks that are computed for images without their labels too, and the weight of what they then cost, which is 0.
    spectators: tuple[str, ...] = ()
    spectator_weight: float = 0.0

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every task with a loss, in order of first appearance."""
        names = [task for tasks in self.streams.values() for task in tasks]
        return tuple(dict.fromkeys([*names, *self.distilled, *self.holding]))

    def of(self, present: tuple[str, ...]) -> Objective:
        """The losses that a batch of some of the streams has."""
        streams = {stream: tasks for stream, tasks in self.streams.items() if stream in present}
        groups = (tuple(stream for stream in group if stream in present) for group in self.groups)
        return dataclasses.replace(self, streams=streams, groups=tuple(group for group in groups if group))

    @property
    def holding(self) -> tuple[str, ...]:
        """The tasks that carry the distillation of features, each an equal part."""
        return self.old_tasks if self.feature_weight else ()

    def carried(self, group: tuple[str, ...]) -> tuple[str, ...]:
        """The tasks for which a group of streams gives a loss: by its labels, by distillation, or both."""
        labelled = [task for stream in group for task in self.streams[stream]]
        return tuple(dict.fromkeys([*labelled, *self.distilled, *self.holding]))

    def computed(self, group: tuple[str, ...]) -> tuple[str, ...]:
        """The tasks whose outputs such a loss needs."""
        labelled = [task for stream in group for task in self.streams[stream]]
        return tuple(dict.fromkeys([*labelled, *self.distilled, *self.spectators]))

    def watching(self, group: tuple[str, ...]) -> tuple[str, ...]:
        """The tasks that are computed for a group of streams although it gives no loss for them."""
        return tuple(task for task in self.computed(group) if task not in self.carried(group))


class LossParts(NamedTuple):
    """What a pass through the network leaves beside the losses."""

    batch_stats: PyTree
    metrics: dict[str, Array]  # by "task/name"
    shared: multi_task.Features  # what the tasks read last in common


def group_losses(
    model: Any,
    tasks: Mapping[str, Task],
    objective: Objective,
    group: tuple[str, ...],
    params: PyTree,
    *,
    batch_stats: PyTree,
    memory: Memory,
    batch: Mapping[str, Any],
    key: Array,
    offsets: multi_task.Features | None = None,
) -> tuple[Float[Array, " carried"], LossParts]:
    """Passes a group of streams through the network and weighs the loss of each task that the group carries.

    Args:
        model: from `multi_task.build`.
        tasks: every task of the model.
        objective: the losses of the stage.
        group: streams whose images have one size.
        params: that are trained.
        batch_stats: before the batch.
        memory: of the earlier stages.
        batch: stream -> image and labels.
        key: of the dropout.
        offsets: added to what the tasks read last in common.

    Returns:
        Losses in the order of `objective.carried(group)`, and what else there is to tell.
    """
    params = change_where(jax.lax.stop_gradient, params, objective.frozen)  # spares their backward pass
    carried = objective.carried(group)
    image = jnp.concatenate([batch[stream]["image"] for stream in group])
    image_size = (image.shape[1], image.shape[2])
    raw, batch_stats, features, shared = multi_task.train_raw(
        model,
        params,
        batch_stats,
        image,
        tasks=objective.computed(group),
        key=key,
        train_batch_norm=_sparing(objective.train_batch_norm, objective.watching(group)),
        offsets=offsets,
    )
    values = dict.fromkeys(carried, jnp.zeros(()))
    metrics: dict[str, Array] = {}
    first = 0
    for stream in group:
        rows = slice(first, first + batch[stream]["image"].shape[0])
        first = rows.stop
        for task in objective.streams[stream]:
            loss, parts = tasks[task].loss(raw[task][rows], batch[stream]["labels"][task], image_size)
            values[task] += objective.stream_weights[stream] * objective.loss_weights.get(task, 1.0) * loss
            metrics |= {f"{task}/{stream}/{name}": part for name, part in {"loss": loss, **parts}.items()}
            stored = batch[stream]["labels"].get(der.label_name(task))
            if stored is not None and objective.der_weight:
                distance = der.distance(raw[task][rows], stored["outputs"])
                values[task] += objective.der_weight * distance
                metrics[f"{task}/{stream}/output_distance"] = distance
    for task in objective.watching(group):
        nothing = tasks[task].no_labels(image.shape[0], image_size)
        values[carried[0]] += objective.spectator_weight * tasks[task].loss(raw[task], nothing, image_size)[0]
    if objective.distilled or objective.holding:
        taught = tuple(objective.distilled) or objective.holding[:1]
        teacher_raw, teacher_features = multi_task.eval_raw(model, memory.teacher, image, tasks=taught)
        teacher_raw = {task: teacher_raw[task] for task in objective.distilled}
        if objective.holding:
            common = {name: teacher_features[name] for name in features.keys() & teacher_features.keys()}
            distance = lwf.feature_distance(features, dict(sorted(common.items())))
            for task in objective.holding:
                values[task] += objective.feature_weight * distance / len(objective.holding)
            metrics[f"all/{group[0]}/feature_distance"] = distance
        weighed = {"weights": objective.distilled, "balance": objective.lwf_balance}
        _, parts = lwf.distillation(tasks, raw, teacher_raw, image_size=image_size, **weighed)
        for task, loss in parts.items():
            values[task] += objective.distilled[task] * loss
            metrics[f"{task}/{group[0]}/distillation"] = loss
    return jnp.stack([values[task] for task in carried]), LossParts(batch_stats, metrics, shared)


def _sparing(train_batch_norm: ByBatch, tasks: tuple[str, ...]) -> ByBatch:
    """Leaves out the batch norms that are some tasks' own."""
    if not tasks:
        return train_batch_norm

    def by_batch(path: str) -> bool:
        trained = train_batch_norm(path) if callable(train_batch_norm) else train_batch_norm
        return trained and owner_of(tuple(path.split("/")), tasks) is None

    return by_batch
