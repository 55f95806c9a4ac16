"""One shared network with task-specific adapters, attention, experts or batch norms."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models.head import Head
from mtl_jax.models.layers import ByBatch, ConvNorm, Dense, Norming, PerTask, branch_name
from mtl_jax.models.sharing.network import Levels, normalised, show_features
from mtl_jax.models.sharing.staged_backbone import STAGES, StagedBackbone, taps
from mtl_jax.tasks.base import Task

BOTTLENECK = 4  # channels of an attention's hidden layer are this many times fewer


class TaskwiseNetwork(nn.Module):
    """Backbone, neck and head are shared; what a task adds of its own lies in "branch_<task>".

    Neck and head see features that differ by task, and so have batch norms for each.
    """

    make_backbone: Callable[..., nn.Module]
    make_neck: Callable[[], nn.Module]
    make_head: Callable[[], Head]
    tasks: tuple[Task, ...]
    norms_by_task = True
    shares_features = False

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "batch height width 3"],
        *,
        tasks: tuple[str, ...],
        train: bool,
        train_batch_norm: ByBatch,
    ) -> dict[str, Float[Array, "batch ..."]]:
        """Returns {task: raw outputs of the head} for RGB images in 0..1."""
        head, outputs = self.make_head().clone(parent=self, name="head"), {}
        for name, (features, levels) in self.levels(normalised(image), tasks, train_batch_norm).items():
            show_features(self, levels, prefix=f"{name}_")
            norming = {"train": train, "train_batch_norm": PerTask(name, train_batch_norm)}
            outputs |= head(levels, backbone=features, tasks=(name,), **norming)
        return outputs

    def levels(
        self, image: Array, tasks: tuple[str, ...], train_batch_norm: ByBatch
    ) -> dict[str, tuple[Levels, Levels]]:
        """Features that neck and head read for each task, from normalised images."""
        neck = self.make_neck().clone(parent=self, name="neck")
        features = self.features(image, tasks, train_batch_norm)
        return {
            name: (task_features, neck(task_features, train_batch_norm=PerTask(name, train_batch_norm)))
            for name, task_features in features.items()
        }

    def features(self, image: Array, tasks: tuple[str, ...], train_batch_norm: ByBatch) -> dict[str, Levels]:
        """Features that the neck reads for each task."""
        raise NotImplementedError


class Adapters(nn.Module):
    """One task's residual adapters: x plus a 1x1 convolution of x, which is zero at first."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], number: int
    ) -> Float[Array, "batch height width channels"]:
        """Adapts the features of the stage of a number."""
        return x + Dense(x.shape[-1], x.dtype, variance=0.0, name=f"adapter_{number}")(x)


class AdapterNetwork(TaskwiseNetwork):
    """Residual adapters after every stage but the last, and batch norms by task in the backbone too.

    References:
        Rebuffi, Bilen, Vedaldi, "Learning multiple visual domains with residual adapters", 2017.
    """

    def features(self, image: Array, tasks: tuple[str, ...], train_batch_norm: ByBatch) -> dict[str, Levels]:
        """A pass through the backbone for each task, with its adapters."""
        backbone = StagedBackbone(self.make_backbone, name="backbone")
        features = {}
        for name in tasks:
            adapters, x, outputs = Adapters(name=branch_name(name)), image, []
            for number in range(STAGES):
                x = backbone(x, number, train_batch_norm=PerTask(name, train_batch_norm))
                x = adapters(x, number) if number < STAGES - 1 else x
                outputs.append(x)
            features[name] = taps(outputs)
        return features


class Attention(nn.Module):
    """One task's attention: masks of the shared features at each level, from these and the level before."""

    @nn.compact
    def __call__(self, shared: Levels, *, train_batch_norm: Norming) -> Levels:
        """Returns the features that the task attends to, by stride."""
        attended, before = {}, None
        for stride, x in sorted(shared.items()):
            hidden = x.shape[-1] // BOTTLENECK
            if before is not None:
                down = ConvNorm(hidden, "relu", 3, 2, name=f"down_{stride}")
                before = down(before, train_batch_norm=train_batch_norm)
            attention_input = x if before is None else jnp.concatenate([x, before], axis=-1)
            squeeze = ConvNorm(hidden, "relu", name=f"squeeze_{stride}")
            expand = ConvNorm(x.shape[-1], "identity", name=f"expand_{stride}")
            mask = expand(
                squeeze(attention_input, train_batch_norm=train_batch_norm), train_batch_norm=train_batch_norm
            )
            before = attended[stride] = jax.nn.sigmoid(mask) * x
        return attended


class AttentionNetwork(TaskwiseNetwork):
    """A soft mask for each task over the shared features, at the strides that the neck reads.

    References:
        Liu, Johns, Davison, "End-to-End Multi-Task Learning with Attention", 2019 (MTAN).
    """

    def features(self, image: Array, tasks: tuple[str, ...], train_batch_norm: ByBatch) -> dict[str, Levels]:
        """One pass through the backbone, and the attention of each task."""
        shared = self.make_backbone(name="backbone")(image, train_batch_norm=train_batch_norm)
        return {name: Attention(name=branch_name(name))(shared, train_batch_norm=train_batch_norm) for name in tasks}


class Gate(nn.Module):
    """One task's mixture of experts, by weights that the whole image decides; it may have an expert of its own."""

    own_expert: nn.Module | None = None

    @nn.compact
    def __call__(self, shared: Levels, experts: list[Mapping[int, Array]], *, train_batch_norm: Norming) -> Levels:
        """Returns the weighted sum of what the experts make of the shared features, by stride."""
        if self.own_expert is not None:
            experts = [*experts, self.own_expert(shared, train_batch_norm=train_batch_norm)]
        whole_image = shared[max(shared)].mean(axis=(1, 2))
        weights = jax.nn.softmax(Dense(len(experts), name="gate")(whole_image.astype(jnp.float32)), axis=-1)
        weights = weights.astype(experts[0][max(shared)].dtype)

        def mixed(stride: int) -> Array:
            stacked = jnp.stack([levels[stride] for levels in experts], axis=1)
            return jnp.einsum("be,behwc->bhwc", weights, stacked)

        return {stride: mixed(stride) for stride in experts[0]}


class ExpertsNetwork(TaskwiseNetwork):
    """Several necks, the experts, which each task mixes by a gate of its own.

    With an expert for each task in addition to the shared ones, it is a customised gate control.

    References:
        Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", 2018 (MMoE).
        Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for Personalized
        Recommendations", 2020 (CGC, its single layer).
    """

    experts: int = 3  # that all tasks share
    own_experts: bool = False

    def levels(
        self, image: Array, tasks: tuple[str, ...], train_batch_norm: ByBatch
    ) -> dict[str, tuple[Levels, Levels]]:
        """One pass through backbone and shared experts, and the mixture of each task."""
        shared = self.make_backbone(name="backbone")(image, train_batch_norm=train_batch_norm)
        necks = [self.make_neck().clone(parent=self, name=f"expert_{number}") for number in range(self.experts)]
        common = [neck(shared, train_batch_norm=train_batch_norm) for neck in necks]
        gates = {name: Gate(self.make_neck() if self.own_experts else None, name=branch_name(name)) for name in tasks}
        return {name: (shared, gate(shared, common, train_batch_norm=train_batch_norm)) for name, gate in gates.items()}
