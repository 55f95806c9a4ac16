"""Trains the stages one after another, evaluates, logs and saves: side effects live here and in the steps."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
from jaxtyping import PyTree

from mtl_jax import config as config_lib
from mtl_jax import experiment
from mtl_jax.config.run_settings import RunSettings
from mtl_jax.continual import memory, reading
from mtl_jax.continual.method import Finished, Memory
from mtl_jax.data import findings
from mtl_jax.errors import UserError
from mtl_jax.evaluation import baselines, contract, evaluate, output_change
from mtl_jax.kernels import cpu_kernels
from mtl_jax.models import dependence, multi_task
from mtl_jax.report import run_report
from mtl_jax.runtime import devices
from mtl_jax.runtime.preemption import Preemption
from mtl_jax.training import (
    dry_run,
    exactness,
    measurement,
    resumption,
    stage_checkpoints,
    stage_plan,
    stage_setup,
    stage_steps,
    step_log,
    train_step,
)
from mtl_jax.training.run_context import Run
from mtl_jax.training.stage_checkpoints import StageClock
from mtl_jax.training.stage_plan import StagePlan, StageResult
from mtl_jax.workdir import checkpoints, data_changes, data_record, files, lineage, run_record
from mtl_jax.workdir.metrics_log import MetricsLog

Review: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]


def train_and_evaluate(
    config: Any,
    workdir: str | Path,
    *,
    command: str = "",
    preemption: Preemption | None = None,
    track: Sequence[str] = ("tensorboard",),
    review: Review = dict,
) -> dict[str, Any]:
    """Trains every stage of a config, or what is left of it, and judges the contract.

    Args:
        config: from a page of `configs/`.
        workdir: where the run's files go; a run that is there already is continued.
        command: for the record in `config.json`.
        preemption: checked after every step; None never ends early.
        track: keys of `workdir.tracking.TRACKERS`, which get all figures, the configuration and the report.
        review: gets the contract, and returns it as it is written and reported.

    Returns:
        The contract, as written to `contract.json`.

    Raises:
        UserError: a setting, a dataset or a work directory that does not fit, or files that cannot be written.
        CheckpointError: a checkpoint that cannot be read or written.
        Preempted: the run received a stop request, and has saved.
    """
    try:
        return _train_and_evaluate(
            config, Path(workdir).expanduser(), command, preemption or Preemption(), track, review
        )
    except OSError as error:
        raise UserError(
            f"{error.filename or workdir}: {error.strerror or error}; the checkpoints in {workdir} are intact, and the "
            "same command goes on from the last"
        ) from error


def _train_and_evaluate(
    config: Any, workdir: Path, command: str, preemption: Preemption, track: Sequence[str], review: Review
) -> dict[str, Any]:
    settings = reading.complete(config_lib.resolve(config))
    cpu_kernels.start_build()  # while the data is looked at
    dry_run.check_arguments(settings)
    root = config_lib.data_root(settings).absolute()
    settings = dataclasses.replace(settings, data_root=str(root))  # recorded, so that eval.py finds the same data
    setup = experiment.build(settings, data_root=root)
    dry_run.rehearse(settings, setup, data=False)  # a mistake in the last stage is reported before any image is read
    if not checkpoints.stages(workdir):  # a run that goes on has its weights
        experiment.check_weights(setup, pretrained_path=settings.pretrained, offline=settings.offline)
    baselines.baselines(settings.contract.baseline_from)  # a missing run is reported before the first stage too
    data = data_record.look(settings, setup)  # faults are reported before the first stage, not after it
    _refuse_other_baselines(settings, setup, data)
    dry_run.rehearse(settings, setup)
    initial = None if checkpoints.stages(workdir) else _start(settings, setup)
    with contextlib.ExitStack() as stack:
        write_dir = workdir if devices.is_primary() else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(run_record.locked(write_dir))
        result = stage_checkpoints.last_result(workdir, settings, setup)
        first_stage = 0 if result is None else len(result.stages)
        stage_checkpoints.refuse_another_in_training(workdir, settings, steps_done=first_stage)
        run_record.claim(write_dir, settings.to_dict(), command=command, trains=first_stage < len(settings.order))
        stage_checkpoints.remove_finished_partials(write_dir, steps_done=first_stage)
        if first_stage < len(settings.order):  # else the data there is what the figures are of
            data.write(write_dir)
        trackers = tuple(track) if devices.is_primary() else ()
        log = MetricsLog(write_dir, trackers=trackers, name=workdir.name, config=settings.to_dict())
        stack.enter_context(log)
        predict = evaluate.make_predict(setup.model, setup.tasks)
        run = Run(settings, setup, predict, workdir, write_dir, log, preemption, data.digests())
        _tell_unmeasured(setup)
        _tell_unlabelled(setup)
        if result is None:
            result = initial or _start(settings, setup)
        else:
            result = resumption.with_this_data(run, result, lambda: _start(settings, setup))
        for index in range(len(result.stages), len(settings.order)):
            result = _run_stage(run, index, result)
        return _conclude(run, result, review)


def _tell_unmeasured(setup: experiment.Experiment) -> None:
    """Says which streams label a task that is measured on another's images."""
    for task in setup.tasks:
        unmeasured = experiment.unmeasured_streams(setup, task)
        if unmeasured:
            on = " and ".join(experiment.measuring_streams(setup, task))
            data_record.log_line(f"{task} is measured on {on}, not on {', '.join(unmeasured)}: eval.py measures on all")


def _tell_unlabelled(setup: experiment.Experiment) -> None:
    """Says which classes a stream leaves unlabelled."""
    for stream in setup.used_streams:
        data = experiment.source(setup, stream, training=True)
        for task, classes in experiment.classes_of(setup, stream, data).items():
            names = zip(setup.tasks[task].classes, classes.labelled, strict=True)
            unlabelled = [name for name, is_labelled in names if not is_labelled]
            if unlabelled:
                data_record.log_line(
                    f"{stream} does not label {len(unlabelled)} of the {len(classes.labelled)} classes of {task} "
                    f"({findings.abbreviated(unlabelled)}): they are neither background nor learnt there"
                )


def _refuse_other_baselines(config: RunSettings, setup: experiment.Experiment, data: data_record.DataRecord) -> None:
    if not config.smoke:  # which measures on a few images, to try everything out
        streams = experiment.measured_streams(setup, setup.tasks)
        measuring_stream = {task: stream for stream, tasks in reversed(streams.items()) for task in tasks}  # the first
        data_changes.refuse_other_baselines(config.contract.baseline_from, measuring_stream, data.digests())


def _start(config: RunSettings, setup: experiment.Experiment) -> StageResult:
    init_options = {"pretrained_path": config.pretrained, "offline": config.offline}
    variables = experiment.init_variables(setup, key=jax.random.key(config.seed), **init_options)
    return StageResult(variables, memory.nothing(), stages=[], train_seconds=0.0, step=0)


def _run_stage(run: Run, index: int, result: StageResult) -> StageResult:
    """Trains and evaluates one stage, and saves it with what the later ones need."""
    start_time = time.monotonic()
    stage = stage_plan.plan(run.config, run.setup, index, result)
    skip = run.config.on_nan == "skip"
    state, steps, method_inputs = stage_setup.prepare(
        run.setup, stage, result, seed=run.config.seed, skip_not_finite=skip
    )
    course = StageClock(state, step=0, saved=0, started=start_time)
    with course.paused():
        before = measurement.before(run, stage, result, state)
    resumed = stage_checkpoints.resume(run, stage, course)
    resumption.report_other_images(run, stage, course.step, old_digests=resumed)
    run.log.resume_from(result.step + course.step)
    # Copies, because the step gives the state's buffers away, and the teacher's and the anchor's must stay.
    course.state, method_inputs = devices.copy_everywhere((course.state, method_inputs))
    with run.preemption.unsaved(lambda: stage_checkpoints.save_partial(run, stage, course)):
        stage_steps.take_all(run, stage, course, steps, method_inputs, result.step)
        variables = jax.device_get(stage_setup.evaluated(course.state))
        method_memory = _remembered(stage, result, course.state, variables)
        seconds = course.seconds
        stage_names = [*(record["name"] for record in result.stages), stage.name]
        figures = measurement.after(run, variables, stage.learnt_tasks, stage_names)
        end = result.step + stage.total_steps
        shown_figures = {**figures["metrics"], **figures.get("added", {})}
        step_log.log_metrics(run, stage, shown_figures, step=end, steps_done=stage.total_steps)
        history = [*result.stages, {"name": stage.name, **figures, **before, "data": run.data}]
        peak = max(result.peak_memory_mb or 0.0, devices.peak_memory_mb() or 0.0) or None
        calibrations = measurement.calibration(run, variables, stage.learnt_tasks, stage_names)
        after = StageResult(variables, method_memory, history, result.train_seconds + seconds, end, peak, calibrations)
        stage_checkpoints.save(run, stage, after, course.state)
    return after


def _remembered(
    stage: StagePlan, result: StageResult, state: train_step.TrainState, variables: Mapping[str, PyTree]
) -> Memory:
    """Memory of the stages so far, for the later ones."""
    method_memory = result.memory
    for name, method in stage.view.keep.items():
        finished = Finished(result.variables, variables, state.keep_state.get(name))
        method_memory = method.after(stage.view, finished, method_memory)
    return method_memory


def _output_changes(run: Run, result: StageResult) -> dict[str, float]:
    """How far the outputs of old tasks have moved: since the parent, or since a stage said what becomes of them."""
    growth = lineage.read(run.workdir)
    added_count = len(growth["versions"][-1]["stages"]) if growth else 0
    index = len(run.config.order) - added_count if added_count else exactness.first_kept(run.config)
    before = next((checkpoint for checkpoint in checkpoints.stages(run.workdir) if checkpoint.index == index - 1), None)
    if index == 0 or before is None:
        return {}
    old = run.config.tasks_of(*run.config.order[:index])
    variables = checkpoints.load(before.path, {"variables": experiment.abstract_variables(run.setup)})["variables"]
    return output_change.largest(run.setup, variables, result.variables, old, stages=run.config.order[:index])


def _budgets(run: Run, result: StageResult, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Measures the costs of the network, with their limits."""
    limits, params = run.config.contract, result.variables["params"]
    size = limits.latency_image_size
    latency = evaluate.latency_ms(run.predict, result.variables, names, image_size=size)
    flops = evaluate.gigaflops(run.setup.model, result.variables, names, image_size=size)
    owners = dependence.params_by_owner(run.setup.model)
    count = sum(multi_task.parameter_count(params).values())
    return {
        "params": {"value": count, "limit": run.config.model.max_params},
        "train_seconds": {"value": result.train_seconds, "limit": limits.max_train_seconds},
        "latency_ms": {"value": latency, "limit": limits.max_latency_ms, "image_size": size},
        "gigaflops": {"value": flops, "limit": None, "image_size": size},
        "shared_percent": {"value": dependence.shared_percent(owners), "limit": None},
        "params_by_owner": {"value": owners, "limit": None},
        "peak_memory_mb": {"value": result.peak_memory_mb, "limit": None},
    }


def _conclude(run: Run, result: StageResult, review: Review) -> dict[str, Any]:
    """Measures the budgets, judges the contract, and writes both and the report."""
    tasks, limits = run.setup.tasks, run.config.contract
    names = tuple(result.stages[-1]["metrics"])
    budgets = _budgets(run, result, names)
    verdict = contract.build(
        result.stages,
        {name: (tasks[name].main_metric, tasks[name].higher_is_better) for name in names},
        budgets,
        added={name: tasks[name].later_classes for name in names},
        max_drop_percent=limits.max_drop_percent,
        baselines=baselines.baselines(limits.baseline_from),
    )
    for name, entry in verdict["tasks"].items():
        measuring = experiment.measuring_streams(run.setup, name)
        entry["stream"] = measuring[0]
        entry["streams_not_measured"] = list(experiment.unmeasured_streams(run.setup, name))
        if measuring[1:]:
            entry["streams_measured_too"] = list(measuring[1:])
    for name, change in _output_changes(run, result).items():
        verdict["tasks"][name]["largest_output_change"] = change
    if growth := lineage.read(run.workdir):
        verdict["lineage"] = growth
    if result.calibration:
        verdict["calibration"] = measurement.calibration_figures(run, result.variables, result.calibration)
    verdict = review(verdict)
    files.write_json(run.written / "contract.json", verdict)
    run_report.write(run.written, pictures_by_task=measurement.look(run, result.variables, names, result.calibration))
    for name in ("report.html", "contract.json"):
        run.log.artifact(run.written / name)
    return verdict
