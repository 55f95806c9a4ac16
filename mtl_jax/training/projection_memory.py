"""Gradient projection memory over stages: what a stage's tasks read is measured at its end and left alone after it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from mtl_jax import experiment
from mtl_jax.continual import gpm
from mtl_jax.experiment import Experiment
from mtl_jax.models import kernel_inputs
from mtl_jax.models.ownership import owner_of
from mtl_jax.models.patterns import expanded, matches
from mtl_jax.training.losses import Objective


def layers(parts: Experiment, settings: Any, params: PyTree, *, where: str) -> tuple[str, ...]:
    """Returns patterns of the parameters that a stage's tasks hold in the later stages; none where it holds nothing.

    Args:
        parts: what the configuration describes.
        settings: of the stage.
        params: of the network, or their shapes.
        where: the settings, for the error.

    Raises:
        UserError: a pattern names no parameter that tasks share.
    """
    if not settings.gpm_energy:
        return ()
    stages = experiment.backbone_stages(parts, settings.gpm_layers)
    patterns = tuple(each for pattern in settings.gpm_layers for each in expanded(pattern, stages))
    return gpm.shared_layers(params, patterns, tuple(parts.tasks), where=f"{where}.gpm")


def require_still(
    config: Any,
    parts: Experiment,
    index: int,
    held: gpm.Held,
    variables: Mapping[str, PyTree],
    objectives: Iterable[Objective],
) -> None:
    """Checks that a stage leaves as it is what held kernels read.

    Args:
        config: the resolved configuration.
        parts: what it describes.
        index: of the stage in `config.order`.
        held: by the stages before it.
        variables: of the network, or their shapes.
        objectives: of the stage, for each part of it that freezes something else.

    Raises:
        UserError: as `gpm.require_still`.
    """
    for earlier in config.order[:index]:
        patterns = layers(parts, config.stages[earlier], variables["params"], where=f"config.stages.{earlier}")
        for objective in objectives if patterns else ():
            gpm.require_still(
                held,
                variables,
                layers=patterns,
                frozen=objective.frozen,
                train_batch_norm=objective.train_batch_norm,
                tasks=tuple(parts.tasks),
                where=f"config.stages.{config.order[index]}",
            )


def measured(config: Any, parts: Experiment, index: int, held: gpm.Held, variables: Mapping[str, PyTree]) -> gpm.Held:
    """Returns what is held after a stage: what was held before, and its share of what the stage's tasks read.

    Args:
        config: the resolved configuration.
        parts: what it describes.
        index: of the stage in `config.order`; the last one holds nothing for others.
        held: by the stages before it.
        variables: at its end.
    """
    settings = config.stages[config.order[index]]
    for stream, read in _reads(config, parts, index, variables["params"]).items():
        read = jax.jit(read)
        source = experiment.source(parts, stream, training=True)
        data = experiment.train_batches(parts, stream, source, seed=config.seed, augmented=False)
        batches = max(1, min(settings.gpm_images, len(source)) // config.streams[stream].batch_size)
        total: dict[str, np.ndarray] = {}
        passed = None
        for position in range(batches):
            passed = jax.device_get(read(variables, data[position]["image"]))
            total = {path: total.get(path, 0.0) + sums.astype(np.float64) for path, sums in passed.covariances.items()}
        assert passed is not None  # one batch at least
        held = gpm.remember(held, total, passed.others, energy=settings.gpm_energy)
    return held


def expected(config: Any, parts: Experiment, index: int, held: gpm.Held, variables: Mapping[str, PyTree]) -> gpm.Held:
    """As `measured`, from shapes alone: which parameters will be held, with bases of one direction.

    Args:
        config: the resolved configuration.
        parts: what it describes.
        index: of the stage in `config.order`.
        held: by the stages before it.
        variables: of the network, or their shapes.
    """
    for stream, read in _reads(config, parts, index, variables["params"]).items():
        size = experiment.train_image_size(parts, stream)
        image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        passed = jax.eval_shape(read, variables, image)
        fresh = {path: np.ones((*sums.shape[1:3], 1), np.float32) for path, sums in passed.covariances.items()}
        held = gpm.Held(fresh | held.bases, tuple(dict.fromkeys([*held.whole, *passed.others])))
    return held


def _reads(
    config: Any, parts: Experiment, index: int, params: PyTree
) -> dict[str, Callable[[Mapping[str, PyTree], Any], kernel_inputs.Read]]:
    """Stream -> `(variables, image) -> what its tasks read` of what a stage holds; nothing for the last stage."""
    name, names = config.order[index], tuple(parts.tasks)
    patterns = layers(parts, config.stages[name], params, where=f"config.stages.{name}")
    if not patterns or index == len(config.order) - 1:
        return {}

    def chosen(path: str) -> bool:
        return owner_of(tuple(path.split("/")), names) is None and matches(path, patterns)

    def read(stream: str) -> Callable[..., kernel_inputs.Read]:
        tasks = tuple(experiment.stream_tasks(parts, stream))
        return functools.partial(kernel_inputs.covariances, parts.model, tasks=tasks, chosen=chosen)

    return {stream: read(stream) for stream in config.stages[name].streams}
