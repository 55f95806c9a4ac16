"""Measures tasks of a run on its validation images."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import PyTree

from mtl_jax.evaluation import evaluate
from mtl_jax.runtime import devices
from mtl_jax.training import stage_setup
from mtl_jax.training.run_context import Run
from mtl_jax.training.stage_plan import StagePlan, StageResult
from mtl_jax.training.train_step import TrainState


def tasks(run: Run, variables: PyTree, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Measures tasks on the validation data of their streams.

    Args:
        run: whose tasks they are.
        variables: of the network.
        names: of the tasks.

    Returns:
        Task -> figures by name.
    """
    metrics = evaluate.measured(run.parts, run.predict, variables, names)
    devices.give_back_memory()
    return {name: metrics[name].compute() for name in names}


def before(run: Run, stage: StagePlan, learnt: StageResult, state: TrainState) -> dict[str, Any]:
    """Measures what a stage will teach, before it does, and what constant answers reach: what there is to beat.

    For forward transfer, older tasks are measured too, and before the first stage every task of the run.

    Args:
        run: of the stage.
        stage: not trained yet.
        learnt: what the stages before it left.
        state: that it starts with.

    Returns:
        "before" -> task -> figures by name; "constant" -> task -> the fields of `Constant`.
    """
    known = {task for earlier in learnt.stages for task in earlier["metrics"]}
    new = [task for task in stage.learnt_tasks if task not in known]
    asked = new
    if run.config.forward_transfer:
        asked = list(stage.learnt_tasks if stage.index else run.parts.tasks)
    # With the tasks that are measured beside them after the stage, so that no other program is compiled.
    together = dict.fromkeys([*stage.learnt_tasks, *asked])
    variables = jax.device_get(stage_setup.evaluated(state))
    metrics = evaluate.measured(run.parts, run.predict, variables, together, wanted=asked)
    devices.give_back_memory()
    return {
        "before": {task: metrics[task].compute() for task in asked if task in metrics},
        "constant": {task: metrics[task].constant()._asdict() for task in new},
    }
