"""The two wirings of a network: every task through the same layers, or each through a branch of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models.head import Head
from mtl_jax.models.layers import ByBatch, Norming, PerTask, branch_name
from mtl_jax.tasks.base import Task

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB in 0..1, of the images that the published weights were trained on
IMAGENET_STD = (0.229, 0.224, 0.225)

FEATURES = "features"  # name of what `show_features` leaves
SHARED, OFFSETS = "shared", "offsets"  # names of what `_shared_features` leaves, and of the collection that it adds

Levels = dict[int, Float[Array, "batch _ _ _"]]  # by stride in px


class MultiTaskNetwork(nn.Module):
    """Backbone, neck and head, shared by all tasks but for each one's slice of the head's last layer."""

    backbone: nn.Module
    neck: nn.Module
    head: Head
    tasks: tuple[Task, ...]
    norms_by_task: bool = False  # every batch norm is a task's own, and so each task a pass of its own

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
            read = functools.partial(_shared_features, self)
            return self._pass(image, tasks, train, train_batch_norm, read=read)
        outputs = {}
        for name in tasks:
            outputs |= self._pass(image, (name,), train, PerTask(name, train_batch_norm), shown=f"{name}_")
        return outputs

    @property
    def shares_features(self) -> bool:
        """Whether there are features that all tasks read."""
        return not self.norms_by_task

    def _pass(
        self,
        image: Float[Array, "batch height width 3"],
        tasks: tuple[str, ...],
        train: bool,
        train_batch_norm: Norming,
        *,
        shown: str = "",
        read: Callable[[Levels], Levels] = dict,
    ) -> dict[str, Float[Array, "batch ..."]]:
        features = self.backbone(normalised(image), train_batch_norm=train_batch_norm)
        levels = self.neck(features, train_batch_norm=train_batch_norm)
        show_features(self, levels, prefix=shown)
        return self.head(levels, tasks=tasks, train=train, train_batch_norm=train_batch_norm, read=read)


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
        own = self.backbone(shared[last], train_batch_norm=train_batch_norm)
        finer = {stride: x for stride, x in shared.items() if stride < last}
        levels = self.neck(finer | own, train_batch_norm=train_batch_norm)
        show_features(self, levels)
        return self.head(levels, tasks=(task,), train=train, train_batch_norm=train_batch_norm)[task]


class BranchedNetwork(nn.Module):
    """Shared lower stages of the backbone, then a branch for each task.

    A task learnt while the shared stages are frozen changes nothing of any other task.

    References:
        Rusu et al., "Progressive Neural Networks", 2016 (columns that leave earlier ones alone).
        Vandenhende et al., "Branched Multi-Task Networks", 2020 (sharing up to a layer).
    """

    backbone: nn.Module  # up to the last shared stage
    upper: Callable[..., nn.Module]  # makes the stages after it
    neck: Callable[[str], nn.Module]  # of a task
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
            parts = self.upper(parent=None), self.neck(name), self.head(records[name])
            branch = Branch(*parts, name=branch_name(name))
            outputs[name] = branch(shared, task=name, train=train, train_batch_norm=train_batch_norm)
        return outputs


def show_features(module: nn.Module, levels: Mapping[int, Array], *, prefix: str = "") -> None:
    """Leaves {stride in px: features} for callers that ask for Flax's collection "intermediates"."""
    _sow(module, FEATURES, levels, prefix=prefix)


def _sow(module: nn.Module, name: str, levels: Mapping[int, Array], *, prefix: str = "") -> None:
    shown = {f"{prefix}stride_{stride}": x for stride, x in levels.items()}
    module.sow("intermediates", name, shown, init_fn=dict, reduce_fn=lambda old, new: old | new)


def _shared_features(module: nn.Module, features: Levels) -> Levels:
    """Leaves what the tasks read last in common, as `show_features` does, and adds the caller's offsets to it."""
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
