"""The one head: a branch that all tasks share, and a last 1x1 convolution that is split by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models.exchange import CrossTaskAttention, Refinement
from mtl_jax.models.layers import BatchNorm, Conv, Dense, Norming, SeparableConv, branch_name
from mtl_jax.models.readout import GrownReadout, Sources, readout
from mtl_jax.tasks.base import Task


def _dense(channels: int, kernel_size: int, dtype: jnp.dtype, *, name: str) -> Conv:
    return Conv(channels, kernel_size, dtype=dtype, name=name)


CONVOLUTIONS = {"dense": _dense, "separable": SeparableConv}


class Head(nn.Module):
    """Computes the raw outputs of the requested tasks, without levels and slices that none of them uses.

    The convolutions of the branch are the same on every level; each level has its own batch norm, as levels
    differ in their statistics and tasks in the levels that they read, so that shared running statistics would
    fit none of them.

    References:
        Tan et al., "EfficientDet: Scalable and Efficient Object Detection", 2020.
        Tompson et al., "Efficient Object Localization Using Convolutional Networks", 2015 (channel dropout).
    """

    tasks: tuple[Task, ...]
    channels: int
    layers: int  # hidden layers and the last 1x1
    dropout_rate: float
    dtype: jnp.dtype = jnp.dtype("float32")
    exchange: str = "none"  # one of `EXCHANGES`, which takes the place of the last hidden layer
    convolution: str = "dense"  # of the hidden layers, one of `CONVOLUTIONS`
    kernel_size: int = 3  # of the same

    @nn.compact
    def __call__(
        self,
        levels: Mapping[int, Float[Array, "batch _ _ _"]],
        *,
        tasks: tuple[str, ...],
        train: bool,
        train_batch_norm: Norming,
        exchange: Callable[[dict[int, Array]], dict[int, Array]] = dict,
        backbone: Mapping[int, Float[Array, "batch _ _ _"]] | None = None,
    ) -> dict[str, Float[Array, "batch ..."]]:
        """Returns {task: raw outputs} for the requested tasks.

        Args:
            levels: {stride in px: features} from the neck.
            tasks: Names of the tasks to compute.
            train: Turns dropout on; its key is the stream "dropout".
            train_batch_norm: Where to normalise by the batch and update the running statistics.
            exchange: Passes on what the tasks' own slices read, {stride in px: features}.
            backbone: {stride in px: features} that the neck read, for the rows of classes that came later.

        Returns:
            By readout: "dense" [b, h, w, channels], "cells" [b, cells, channels], "pooled" [b, channels].
        """
        requested = {task.name: task for task in self.tasks if task.name in tasks}
        strides = sorted({stride for task in requested.values() for stride in task.levels})
        features = {stride: levels[stride] for stride in strides}
        for number in range(self.layers - (1 if self.exchange == "none" else 2)):
            conv = CONVOLUTIONS[self.convolution](self.channels, self.kernel_size, self.dtype, name=f"conv_{number}")
            for stride in strides:
                norm = BatchNorm("relu", name=f"norm_{number}_stride_{stride}")
                features[stride] = norm(conv(features[stride], norming=train_batch_norm), by_batch=train_batch_norm)
        # Whole channels are dropped: neighbours would give single cells away, and the mask costs nothing.
        dropout = nn.Dropout(self.dropout_rate, broadcast_dims=(1, 2), deterministic=not train)
        features = exchange({stride: dropout(x) for stride, x in features.items()})
        if self.exchange == "refinement":
            return self._refined(requested, features)
        by_task = dict.fromkeys(tasks, features)
        if self.exchange == "attention":
            attend = CrossTaskAttention(self.tasks, self.channels, self.dtype, name="attention")
            attended = {stride: attend(x, tasks) for stride, x in features.items()}
            by_task = {name: {stride: of_task[name] for stride, of_task in attended.items()} for name in tasks}
        sources = Sources(levels, backbone or {})
        return {name: self._raw_outputs(requested[name], by_task[name], sources, train_batch_norm) for name in tasks}

    def _readout(self, task: Task) -> Dense:
        return readout(task.channels, self.dtype, name=task.name)

    def _raw_outputs(self, task: Task, features: Mapping[int, Array], sources: Sources, norming: Norming) -> Array:
        if task.readout == "pooled":  # the mean of the cells' outputs, at lower cost
            features = {stride: jnp.mean(features[stride], axis=(1, 2)) for stride in task.levels}
        if task.additions:
            raw = GrownReadout(task, self.dtype, name=task.name)(features, sources, norming=norming)
        else:
            readout_module = self._readout(task)
            raw = {stride: readout_module(features[stride]) for stride in task.levels}
        return raw[task.strides[0]] if task.readout == "pooled" else _arranged(task, raw)

    def _refined(self, requested: Mapping[str, Task], features: Mapping[int, Array]) -> dict[str, Array]:
        readouts, refined = {task.name: self._readout(task) for task in self.tasks}, {}
        for name, task in requested.items():
            refine, raw = Refinement(task.channels, self.dtype, name=branch_name(name)), {}
            for stride in task.levels:
                raw_outputs = {name: readout(features[stride]) for name, readout in readouts.items()}
                raw[stride] = refine(raw_outputs.pop(name), raw_outputs)
            refined[name] = _arranged(task, raw)
        return refined


def _arranged(task: Task, raw: Mapping[int, Array]) -> Array:
    """Arranges a task's outputs of all cells and levels in the form of its readout."""
    first = raw[task.strides[0]]
    if task.readout == "dense":
        return first
    if task.readout == "pooled":
        return jnp.mean(first, axis=(1, 2))
    return jnp.concatenate([raw[s].reshape(first.shape[0], -1, first.shape[-1]) for s in task.strides], axis=1)
