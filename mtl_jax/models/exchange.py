"""Exchange between tasks in the head's last layers: of features, or of outputs."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models.layers import Dense
from mtl_jax.tasks.base import Task

EXCHANGES = ("none", "attention", "refinement")


class CrossTaskAttention(nn.Module):
    """Features for each task, to which every other task's are added as far as a gate of the task lets them in.

    References:
        Xu, Ouyang, Wang, Sebe, "PAD-Net: Multi-Tasks Guided Prediction-and-Distillation Network for Simultaneous Depth
        Estimation and Scene Parsing", 2018 (distillation with attention, section 3.4).
    """

    tasks: tuple[Task, ...]
    channels: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width _"], task_names: tuple[str, ...]
    ) -> dict[str, Float[Array, "batch height width channels"]]:
        """Returns {task: features} of one level for the requested tasks."""
        names = [task.name for task in self.tasks]
        projections = {name: jax.nn.relu(self._dense(f"own_{name}")(x)) for name in names}
        attended = {}
        for name in task_names:
            gate = jax.nn.sigmoid(self._dense(f"gate_{name}")(projections[name]))
            messages = [
                self._dense(f"message_{sender}_to_{name}")(projections[sender]) for sender in names if sender != name
            ]
            attended[name] = projections[name] + gate * sum(messages) if messages else projections[name]
        return attended

    def _dense(self, name: str) -> Dense:
        return Dense(self.channels, self.dtype, name=name)


class Refinement(nn.Module):
    """Corrects a task's outputs in each cell by those of the other tasks there; the correction is zero at first.

    No gradient reaches the other tasks.
    """

    channels: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, raw: Float[Array, "batch height width channels"], other_outputs: Mapping[str, Array]
    ) -> Float[Array, "batch height width channels"]:
        """Returns the corrected outputs."""
        if not other_outputs:
            return raw
        outputs = jnp.concatenate([jax.lax.stop_gradient(output) for output in other_outputs.values()], axis=-1)
        correct = Dense(self.channels, self.dtype, jnp.dtype("float32"), variance=0.0, name="correct")
        return raw + correct(jnp.tanh(outputs))
