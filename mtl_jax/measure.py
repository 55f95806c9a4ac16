"""Measures tasks of a run on its validation images."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import PyTree

from mtl_jax import devices, evaluate, experiment, stages
from mtl_jax.run import Run
from mtl_jax.stage_plan import StagePlan
from mtl_jax.train_step import TrainState


def tasks(run: Run, variables: PyTree, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Measures tasks on the validation data of their streams.

    Args:
        run: whose tasks they are.
        variables: of the network.
        names: of the tasks.

    Returns:
        Task -> figures by name.
    """
    metrics: dict[str, dict[str, float]] = {}
    for stream, asked in experiment.measured_streams(run.parts, names).items():
        metrics |= evaluate.evaluate(run.predict, variables, experiment.eval_batches(run.parts, stream), asked)
    devices.give_back_memory()
    return {name: metrics[name] for name in names}


def before(run: Run, stage: StagePlan, state: TrainState) -> dict[str, Any]:
    """Measures what a stage will teach before it does; before the first one, every task of the run.

    Args:
        run: of the stage.
        stage: not trained yet.
        state: that it starts with.

    Returns:
        "before" -> task -> figures by name.
    """
    names = stage.learnt_tasks
    if stage.index == 0:
        labelled = [task for stream in run.parts.used_streams for task in run.config.streams[stream].labels]
        names = tuple(dict.fromkeys(labelled))
    return {"before": tasks(run, jax.device_get(stages.evaluated(state)), names)}
