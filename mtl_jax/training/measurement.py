"""Measures tasks of a run on its validation images."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from mtl_jax import experiment
from mtl_jax.evaluation import calibrate, evaluate
from mtl_jax.evaluation.contract_table import addition
from mtl_jax.report import pictures
from mtl_jax.runtime import devices
from mtl_jax.tasks.base import Metric
from mtl_jax.tasks.calibration import Calibration, calibrated
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
    metrics = evaluate.measured(run.setup, run.predict, variables, names)
    devices.give_back_memory()
    return {name: metrics[name].compute() for name in names}


def after(run: Run, variables: PyTree, names: tuple[str, ...], stages: Sequence[str]) -> dict[str, Any]:
    """Measures what a network has learnt.

    Args:
        run: whose tasks they are.
        variables: of the network.
        names: of the tasks.
        stages: that are finished.

    Returns:
        "metrics" -> task -> metrics by name; "added" -> `contract_table.addition` -> the same for added classes.
    """
    added_metrics = {name: metric.compute() for name, metric in _additions(run, variables, stages).items()}
    return {"metrics": tasks(run, variables, names), **({"added": added_metrics} if added_metrics else {})}


def _additions(run: Run, variables: PyTree, stages: Iterable[str]) -> dict[str, Metric]:
    metrics = evaluate.measured_additions(run.setup, run.predict, variables, run.setup.tasks, stages=stages)
    devices.give_back_memory()
    return metrics


def before(run: Run, stage: StagePlan, result: StageResult, state: TrainState) -> dict[str, Any]:
    """Measures what a stage will teach, before it does, and the best constant outputs: what there is to beat.

    For forward transfer, older tasks are measured too, and before the first stage every task of the run.

    Args:
        run: of the stage.
        stage: not trained yet.
        result: what the stages before it left.
        state: that it starts with.

    Returns:
        "before" -> task -> figures by name; "constant" -> task -> the fields of `Constant`; also "added_before" and
        "added_constant", of classes that the stage adds to a task.
    """
    measured_tasks = {task for past_stage in result.stages for task in past_stage["metrics"]}
    new = [task for task in stage.learnt_tasks if task not in measured_tasks]
    requested = new
    if run.config.forward_transfer:
        requested = list(stage.learnt_tasks if stage.index else run.setup.tasks)
    # With the tasks that are measured with them after the stage, so that no other program is compiled.
    task_names = dict.fromkeys([*stage.learnt_tasks, *requested])
    variables = jax.device_get(stage_setup.evaluated(state))
    metrics = evaluate.measured(run.setup, run.predict, variables, task_names, requested=requested)
    devices.give_back_memory()
    figures = {
        "before": {task: metrics[task].compute() for task in requested if task in metrics},
        "constant": {task: metrics[task].constant()._asdict() for task in new},
    }
    if added_metrics := _additions(run, variables, (stage.name,)):
        figures["added_before"] = {name: metric.compute() for name, metric in added_metrics.items()}
        figures["added_constant"] = {name: metric.constant()._asdict() for name, metric in added_metrics.items()}
    return figures


def calibration(run: Run, variables: PyTree, names: tuple[str, ...], stages: Sequence[str]) -> dict[str, Calibration]:
    """Chooses temperatures and thresholds on the training images that are held out; nothing where none are."""
    if not run.config.held_out_percent:
        return {}
    predict = calibrate.make_scores(run.setup.model, run.setup.tasks)
    observed = calibrate.observe(predict, run.setup, variables, names, held_out=True, stages=stages)
    devices.give_back_memory()
    return calibrate.choose(run.setup.tasks, observed)


def calibration_figures(run: Run, variables: PyTree, calibrations: Mapping[str, Calibration]) -> dict[str, Any]:
    """Measures on validation images what was chosen on others; the fields are those of `calibrate.judge`."""
    predict = calibrate.make_scores(run.setup.model, run.setup.tasks)
    observed = calibrate.observe(predict, run.setup, variables, calibrations, held_out=False)
    return calibrate.judge(run.setup.tasks, observed, calibrations)


def look(
    run: Run, variables: PyTree, names: tuple[str, ...], calibrations: Mapping[str, Calibration]
) -> dict[str, pictures.Looked]:
    """Looks at predictions for validation images: of every task, and after it of the classes that stages have added.

    Args:
        run: whose tasks they are.
        variables: of the network.
        names: of the tasks.
        calibrations: of those that have one.

    Returns:
        Task, or `contract_table.addition` -> pictures and figures by class.
    """
    tasks = {name: calibrated(run.setup.tasks[name], calibrations.get(name)) for name in names}
    of_stream = functools.partial(pictures.look, run.predict, variables, count=run.config.example_images)
    of_tasks: dict[str, pictures.Looked] = {}
    for stream, stream_tasks in experiment.measured_streams(run.setup, names).items():
        of_tasks |= of_stream(experiment.eval_batches(run.setup, stream), {name: tasks[name] for name in stream_tasks})
    looked: dict[str, pictures.Looked] = {}
    for name, task in tasks.items():
        looked |= {name: of_tasks[name]} if name in of_tasks else {}
        for stage in task.later_classes:
            for stream in experiment.streams_of_addition(run.setup, name, stage)[:1]:
                of_stage = of_stream(experiment.eval_batches(run.setup, stream), {name: task}, stage=stage)
                looked |= {addition(name, stage): of_classes for of_classes in of_stage.values()}
    return looked
