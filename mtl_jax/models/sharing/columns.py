"""A network for each task, side by side: independent, or exchanging features after every stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models.head import Head
from mtl_jax.models.layers import ByBatch, Dense, branch_name
from mtl_jax.models.sharing.network import normalised, show_features
from mtl_jax.models.sharing.staged_backbone import STAGES, StagedBackbone, taps
from mtl_jax.tasks.base import Task

OWN_SHARE = 0.9  # of a column's own features after a stitch, at first (section 4.3 of the paper)


class Laterals(nn.Module):
    """1x1 convolutions, zero at first, that lead from other columns into one."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], other_features: Mapping[str, Array], number: int
    ) -> Float[Array, "batch height width channels"]:
        """Returns the column's own features and what the others add after the stage of a number."""
        for name, features in other_features.items():
            x = x + Dense(x.shape[-1], x.dtype, variance=0.0, name=f"{name}_{number}")(features)
        return x


class Column(nn.Module):
    """One task's backbone, neck and head."""

    backbone: StagedBackbone
    neck: nn.Module
    head: Head

    def setup(self) -> None:
        """Makes the laterals, which have no parameters unless they are used."""
        self.laterals = Laterals()

    def receive(self, x: Array, other_features: Mapping[str, Array], number: int) -> Array:
        """Adds what other columns' features mean to this one."""
        return self.laterals(x, other_features, number)

    def __call__(
        self, x: Float[Array, "batch height width channels"], number: int, *, train_batch_norm: ByBatch
    ) -> Float[Array, "batch _ _ _"]:
        """Applies the stage of a number."""
        return self.backbone(x, number, train_batch_norm=train_batch_norm)

    def task_outputs(
        self, outputs: Sequence[Array], *, task: str, train: bool, train_batch_norm: ByBatch
    ) -> Float[Array, "batch ..."]:
        """Returns the task's raw outputs, from those of all stages."""
        features = taps(list(outputs))
        levels = self.neck(features, train_batch_norm=train_batch_norm)
        show_features(self, levels)
        norming = {"train": train, "train_batch_norm": train_batch_norm}
        return self.head(levels, backbone=features, tasks=(task,), **norming)[task]


class ColumnsNetwork(nn.Module):
    """Independent networks: a column for each task; only the requested ones are computed."""

    make_backbone: Callable[..., nn.Module]
    make_neck: Callable[[Task], nn.Module]
    make_head: Callable[[Task], Head]
    tasks: tuple[Task, ...]
    norms_by_task = False  # each column has its own anyway
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
        """Returns {task: raw outputs of its column} for RGB images in 0..1."""
        needed = self.needed(tasks)
        columns = {task.name: self.column(task) for task in self.tasks if task.name in needed}
        # A column that only helps others is none of this batch's to normalise by.
        norming = {name: train_batch_norm if name in tasks or self.is_one() else False for name in columns}
        features = dict.fromkeys(columns, normalised(image))
        outputs: dict[str, list[Array]] = {name: [] for name in columns}
        for number in range(STAGES):
            features = {
                name: column(features[name], number, train_batch_norm=norming[name]) for name, column in columns.items()
            }
            features = self.exchanged(columns, features, number)
            for name, x in features.items():
                outputs[name].append(x)
        return {
            name: columns[name].task_outputs(outputs[name], task=name, train=train, train_batch_norm=train_batch_norm)
            for name in tasks
        }

    @nn.nowrap
    def needed(self, tasks: tuple[str, ...]) -> tuple[str, ...]:
        """The tasks whose columns the outputs of some tasks depend on."""
        return tasks

    @nn.nowrap
    def is_one(self) -> bool:
        """Whether the columns are parts of one network, all trained by every task."""
        return False

    @nn.nowrap
    def name_of(self, task: str) -> str:
        """Path of a task's column among the parameters; in a branch it is the task's own."""
        return branch_name(task)

    @nn.nowrap
    def column(self, task: Task) -> Column:
        """Makes a task's column."""
        backbone = StagedBackbone(self.make_backbone, parent=None)
        return Column(backbone, self.make_neck(task), self.make_head(task), name=self.name_of(task.name))

    def exchanged(self, columns: Mapping[str, Column], features: dict[str, Array], number: int) -> dict[str, Array]:
        """Features that the columns continue with after the stage of a number."""
        del columns, number
        return features


class CrossStitchNetwork(ColumnsNetwork):
    """Columns that continue with weighted sums of all columns' features after every stage, by weights that are learnt.

    References:
        Misra, Shrivastava, Gupta, Hebert, "Cross-stitch Networks for Multi-task Learning", 2016.
    """

    @nn.nowrap
    def needed(self, tasks: tuple[str, ...]) -> tuple[str, ...]:
        """All of them."""
        return tuple(task.name for task in self.tasks)

    @nn.nowrap
    def is_one(self) -> bool:
        """They are."""
        return True

    @nn.nowrap
    def name_of(self, task: str) -> str:
        """No column is one task's own."""
        return f"column_{task}"

    def exchanged(self, columns: Mapping[str, Column], features: dict[str, Array], number: int) -> dict[str, Array]:
        """The sums, whose weights are the rows of a matrix."""
        del columns
        weights = self.param(f"stitch_{number}", _stitches, (len(features), len(features)))
        rows = dict(zip(features, weights, strict=True))
        return {
            name: jnp.stack([weight * x for weight, x in zip(row, features.values(), strict=True)]).sum(0)
            for name, row in rows.items()
        }


def _stitches(key: Array, shape: tuple[int, int]) -> Float[Array, "tasks tasks"]:
    del key
    count = shape[0]
    if count == 1:
        return jnp.ones(shape)
    other_share = (1 - OWN_SHARE) / (count - 1)
    return jnp.eye(count) * (OWN_SHARE - other_share) + other_share


class ProgressiveNetwork(ColumnsNetwork):
    """Columns that also read the features of earlier tasks' columns, which learn nothing from it.

    The order of the tasks is that of the configuration. After each stage a 1x1 convolution, zero at first, leads from
    every earlier column to a later one.

    References:
        Rusu et al., "Progressive Neural Networks", 2016.
    """

    @nn.nowrap
    def needed(self, tasks: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the requested tasks and all before them."""
        names = [task.name for task in self.tasks]
        return tuple(names[: 1 + max(names.index(task) for task in tasks)])

    def exchanged(self, columns: Mapping[str, Column], features: dict[str, Array], number: int) -> dict[str, Array]:
        """Each column's own features and what leads to it."""
        names = list(features)
        earlier_tasks = {name: names[:position] for position, name in enumerate(names)}
        return {
            name: columns[name].receive(
                x, {sender: jax.lax.stop_gradient(features[sender]) for sender in earlier_tasks[name]}, number
            )
            for name, x in features.items()
        }
