"""The one head: a branch that all tasks share, and a last 1x1 convolution that is split by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models.layers import BatchNorm, Conv, Dense, Norming
from mtl_jax.tasks.base import Task

# 0.01 squared: training starts from near-uniform predictions (Lin et al., "Focal Loss", 2017, section 4.1).
READOUT_VARIANCE = 1e-4


class Head(nn.Module):
    """Emits every asked task's raw outputs, computing no level and no slice that none of them reads.

    The convolutions of the branch are the same on every level; each level has its own batch norm, as levels
    differ in their statistics and tasks in the levels that they read, so that shared running statistics would
    fit none of them.

    References:
        Tan et al., "EfficientDet: Scalable and Efficient Object Detection", 2020.
        Tompson et al., "Efficient Object Localization Using Convolutional Networks", 2015 (channel dropout).
    """

    tasks: tuple[Task, ...]
    channels: int
    layers: int  # hidden 3x3 layers and the last 1x1
    dropout_rate: float
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self,
        levels: Mapping[int, Float[Array, "batch _ _ _"]],
        *,
        tasks: tuple[str, ...],
        train: bool,
        train_batch_norm: Norming,
        read: Callable[[dict[int, Array]], dict[int, Array]] = dict,
    ) -> dict[str, Float[Array, "batch ..."]]:
        """Returns {task: raw outputs} for the asked tasks.

        Args:
            levels: {stride in px: features} from the neck.
            tasks: Names of the tasks to compute.
            train: Turns dropout on; its key is the stream "dropout".
            train_batch_norm: Where to normalise by the batch and update the running statistics.
            read: Passes on what the tasks' own slices read, {stride in px: features}.

        Returns:
            By readout: "dense" [b, h, w, channels], "cells" [b, cells, channels], "pooled" [b, channels].
        """
        asked = {task.name: task for task in self.tasks if task.name in tasks}
        strides = sorted({stride for task in asked.values() for stride in task.levels})
        features = {stride: levels[stride] for stride in strides}
        for number in range(self.layers - 1):
            conv = Conv(self.channels, 3, dtype=self.dtype, name=f"conv_{number}")
            for stride in strides:
                norm = BatchNorm("relu", name=f"norm_{number}_stride_{stride}")
                features[stride] = norm(conv(features[stride]), by_batch=train_batch_norm)
        # Whole channels are dropped: neighbours would give single cells away, and the mask costs nothing.
        dropout = nn.Dropout(self.dropout_rate, broadcast_dims=(1, 2), deterministic=not train)
        features = read({stride: dropout(x) for stride, x in features.items()})
        return {name: _read(asked[name], features, self.dtype) for name in tasks}


def _read(task: Task, features: Mapping[int, Array], dtype: jnp.dtype) -> Array:
    # Outputs are float32 whatever the network computes in: boxes need more than bfloat16's 8 bits.
    readout = Dense(task.channels, dtype, jnp.dtype("float32"), READOUT_VARIANCE, name=task.name)
    if task.readout == "dense":
        return readout(features[task.strides[0]])
    if task.readout == "pooled":
        return readout(jnp.mean(features[task.strides[0]], axis=(1, 2)))
    batch = features[task.strides[0]].shape[0]
    raw = [readout(features[stride]) for stride in task.strides]
    return jnp.concatenate([level.reshape(batch, -1, task.channels) for level in raw], axis=1)
