"""Features, losses and outputs of the network for a stream's training images, one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from mtl_jax.continual.importance import forward_of_examples, labelled_loss
from mtl_jax.continual.method import StageView
from mtl_jax.data.sources.base import Source
from mtl_jax.models import multi_task


class NetworkView:
    """Outputs of the network for a stream's samples, whole and unaugmented, one by one."""

    def __init__(self, stage: StageView, stream: str, variables: Mapping[str, PyTree]) -> None:
        self._stage, self._stream = stage, stream
        self._tasks = stage.stream_tasks(stream)
        self._variables = jax.tree.map(jnp.asarray, dict(variables))  # transferred once

    def features(self, source: Source) -> Float[np.ndarray, "samples channels"]:
        """Returns the mean of each sample's coarsest features, those of the task's own branch where it has one."""

        @jax.jit
        def pooled(variables: PyTree, example: Mapping[str, Any]) -> Float[Array, " channels"]:
            image = example["image"][None]
            feature_maps = multi_task.eval_raw(self._stage.model, variables, image, tasks=tuple(self._tasks))[1]
            task_maps = {name: x for name, x in feature_maps.items() if "/" in name} or feature_maps
            coarsest = min(x.shape[1] for x in task_maps.values())
            return jnp.concatenate([x[0].mean((0, 1)) for _, x in sorted(task_maps.items()) if x.shape[1] == coarsest])

        return np.stack([np.asarray(pooled(self._variables, example)) for example in self._examples(source)])

    def losses(self, source: Source) -> Float[np.ndarray, "samples"]:
        """Returns each sample's loss, summed over its tasks."""
        forward = forward_of_examples(self._stage.model, self._variables["batch_stats"])
        loss = jax.jit(labelled_loss(forward, self._tasks))
        params = self._variables["params"]
        return np.array([float(loss(params, example)) for example in self._examples(source)], np.float32)

    def outputs(self, source: Source) -> list[dict[str, np.ndarray]]:
        """Returns what the head emits for each sample, by task."""
        forward = jax.jit(forward_of_examples(self._stage.model, self._variables["batch_stats"]), static_argnums=2)
        params, tasks = self._variables["params"], tuple(self._tasks)
        outputs_by_example = (forward(params, example, tasks) for example in self._examples(source))
        return [{task: np.asarray(value[0]) for task, value in raw.items()} for raw in outputs_by_example]

    def _examples(self, source: Source) -> Iterator[Any]:
        return self._stage.examples(self._stream, source)
