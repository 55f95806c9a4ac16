"""The two wirings of a network: every task through the same layers, or each through a branch of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models.head import Head
from mtl_jax.models.layers import ByBatch, PerTask, branch_name
from mtl_jax.models.patches import NO_PATCHES, Patches
from mtl_jax.models.sharing.divided import DividedBackbone
from mtl_jax.tasks.base import Task

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB in 0..1, of the images that the published weights were trained on
IMAGENET_STD = (0.229, 0.224, 0.225)

FEATURES = "features"  # name of what `show_features` leaves
SHARED, OFFSETS = "shared", "offsets"  # names of what `_shared_features` leaves, and of the collection that it adds

Levels = dict[int, Float[Array, "batch _ _ _"]]  # by stride in px


class PartPatches(NamedTuple):
    """The patches of each part of a network."""

    backbone: Patches = NO_PATCHES
    neck: Patches = NO_PATCHES
    head: Patches = NO_PATCHES


class MultiTaskNetwork(nn.Module):
    """Backbone, neck and head, shared by all tasks but for each one's slice of the head's last layer.

    Or also for its batch norms, and its patches, above a stride: up to it one pass serves all tasks, and above it each
    has a pass of its own through the shared kernels.
    """

    backbone: DividedBackbone
    neck: nn.Module
    head: Head
    tasks: tuple[Task, ...]
    norms_by_task: bool = False  # batch norms above the backbone's division are a task's own
    patches: PartPatches = PartPatches()

    def __call__(
        self,
        image: Float[Array, "batch height width 3"],
        *,
        tasks: tuple[str, ...],
        train: bool,
        train_batch_norm: ByBatch,
    ) -> dict[str, Float[Array, "batch ..."]]:
        """Returns {task: raw outputs of the head} for RGB images in 0..1."""
        if not self.norms_by_task:
            exchange = functools.partial(_shared_features, self)
            features = self.backbone(normalised(image), train_batch_norm=train_batch_norm)
            levels = self.neck(features, train_batch_norm=train_batch_norm)
            show_features(self, levels)
            norming = {"train": train, "train_batch_norm": train_batch_norm}
            return self.head(levels, backbone=features, tasks=tasks, exchange=exchange, **norming)
        shared = self.backbone.lower(normalised(image), train_batch_norm=train_batch_norm)
        return {
            task.name: self._task_output(task, shared, train, train_batch_norm) for task in self._tasks_named(tasks)
        }

    @property
    def shares_features(self) -> bool:
        """Whether there are features that all tasks read."""
        return not self.norms_by_task

    def _tasks_named(self, names: tuple[str, ...]) -> list[Task]:
        records = {task.name: task for task in self.tasks}
        return [records[name] for name in names]

    def _task_output(self, task: Task, shared: Levels, train: bool, by_batch: ByBatch) -> Float[Array, "batch ..."]:
        """A task's raw outputs, by its own batch norms and patches, from what the shared stages give."""
        backbone, neck, head = (PerTask(task.name, by_batch, patches) for patches in self.patches)
        features = self.backbone.upper(shared, train_batch_norm=backbone)
        if self.patches.neck.rank:  # a level that the task does not read is none to patch
            features = {stride: x for stride, x in features.items() if stride >= min(task.levels)}
        levels = self.neck(features, train_batch_norm=neck)
        show_features(self, levels, prefix=f"{task.name}_")
        return self.head(levels, backbone=features, tasks=(task.name,), train=train, train_batch_norm=head)[task.name]


class Branch(nn.Module):
    """One task's own upper stages of the backbone, neck and head."""

    backbone: nn.Module
    neck: nn.Module
    head: Head

    def __call__(
        self, shared: Mapping[int, Float[Array, "batch _ _ _"]], *, task: str, train: bool, train_batch_norm: ByBatch
    ) -> Float[Array, "batch ..."]:
        """Returns the task's raw outputs, from {stride in px: features} of the shared stages."""
        last = max(shared)
        branch_levels = self.backbone(shared[last], train_batch_norm=train_batch_norm)
        finer = {stride: x for stride, x in shared.items() if stride < last}
        features = finer | branch_levels
        levels = self.neck(features, train_batch_norm=train_batch_norm)
        show_features(self, levels)
        norming = {"train": train, "train_batch_norm": train_batch_norm}
        return self.head(levels, backbone=features, tasks=(task,), **norming)[task]


class BranchedNetwork(nn.Module):
    """Shared lower stages of the backbone, then a branch for each task.

    A task learnt while the shared stages are frozen changes nothing of any other task.

    References:
        Rusu et al., "Progressive Neural Networks", 2016 (columns that leave earlier ones alone).
        Vandenhende et al., "Branched Multi-Task Networks", 2020 (sharing up to a layer).
    """

    backbone: nn.Module  # up to the last shared stage
    upper: Callable[..., nn.Module]  # makes the stages after it
    neck: Callable[[Task], nn.Module]
    head: Callable[[Task], Head]
    tasks: tuple[Task, ...]
    norms_by_task = False  # those of the branches are their tasks' own anyway
    shares_features = True  # there are features that all tasks read

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "batch height width 3"],
        *,
        tasks: tuple[str, ...],
        train: bool,
        train_batch_norm: ByBatch,
    ) -> dict[str, Float[Array, "batch ..."]]:
        """Returns {task: raw outputs of its branch} for RGB images in 0..1."""
        shared = self.backbone(normalised(image), train_batch_norm=train_batch_norm)
        show_features(self, shared)
        shared = _shared_features(self, shared)
        records, outputs = {task.name: task for task in self.tasks}, {}
        for name in tasks:
            components = self.upper(parent=None), self.neck(records[name]), self.head(records[name])
            branch = Branch(*components, name=branch_name(name))
            outputs[name] = branch(shared, task=name, train=train, train_batch_norm=train_batch_norm)
        return outputs


def show_features(module: nn.Module, levels: Mapping[int, Array], *, prefix: str = "") -> None:
    """Leaves {stride in px: features} for callers that ask for Flax's collection "intermediates"."""
    _sow(module, FEATURES, levels, prefix=prefix)


def _sow(module: nn.Module, name: str, levels: Mapping[int, Array], *, prefix: str = "") -> None:
    intermediates = {f"{prefix}stride_{stride}": x for stride, x in levels.items()}
    module.sow("intermediates", name, intermediates, init_fn=dict, reduce_fn=lambda old, new: old | new)


def _shared_features(module: nn.Module, features: Levels) -> Levels:
    """Records the deepest shared features, as `show_features` does, and adds the caller's offsets to them."""
    moved = {}
    for stride, x in features.items():
        name = f"stride_{stride}"
        moved[stride] = x + module.get_variable(OFFSETS, name) if module.has_variable(OFFSETS, name) else x
    _sow(module, SHARED, moved)
    return moved


def normalised(image: Float[Array, "batch height width 3"]) -> Float[Array, "batch height width 3"]:
    """Returns RGB in 0..1 as the published backbones expect it."""
    return (image - _per_channel(IMAGENET_MEAN)) * (1 / _per_channel(IMAGENET_STD))


def _per_channel(values: tuple[float, ...]) -> Float[Array, "1 1 1 3"]:
    return jnp.asarray(values, jnp.float32)[None, None, None, :]
