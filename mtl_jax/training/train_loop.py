"""Trains the stages one after another, evaluates, logs and saves: side effects live here and in the steps."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from mtl_jax.models import dependence, multi_task
from mtl_jax.report import pictures, run_report
from mtl_jax.runtime import devices
from mtl_jax.runtime.preemption import Preemption
from mtl_jax.tasks.calibration import calibrated
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


def train_and_evaluate(
    config: Any,
    workdir: str | Path,
    *,
    command: str = "",
    preemption: Preemption | None = None,
    track: Sequence[str] = ("tensorboard",),
) -> dict[str, Any]:
    """Trains every stage of a config, or what is left of it, and judges the contract.

    Args:
        config: from a page of `configs/`.
        workdir: where the run's files go; a run that is there already is continued.
        command: for the record in `config.json`.
        preemption: asked after every step whether to save and end; None never ends early.
        track: keys of `workdir.tracking.TRACKERS`, which get all figures, the configuration and the report.

    Returns:
        The contract, as written to `contract.json`.

    Raises:
        UserError: a setting, a dataset or a work directory that does not fit, or files that cannot be written.
        CheckpointError: a checkpoint that cannot be read or written.
        Preempted: the run was asked to end, and has saved.
    """
    try:
        return _train_and_evaluate(config, Path(workdir).expanduser(), command, preemption or Preemption(), track)
    except OSError as error:
        raise UserError(
            f"{error.filename or workdir}: {error.strerror or error}; the checkpoints in {workdir} are intact, and the "
            "same command goes on from the last"
        ) from error


def _train_and_evaluate(
    config: Any, workdir: Path, command: str, preemption: Preemption, track: Sequence[str]
) -> dict[str, Any]:
    settings = reading.complete(config_lib.resolve(config))
    dry_run.check_arguments(settings)
    root = config_lib.data_root(settings).absolute()
    settings = dataclasses.replace(settings, data_root=str(root))  # recorded, so that eval.py finds the same data
    parts = experiment.build(settings, data_root=root)
    dry_run.rehearse(settings, parts, data=False)  # a mistake in the last stage is reported before any image is read
    if not checkpoints.stages(workdir):  # a run that goes on has its weights
        experiment.check_weights(parts, pretrained_path=settings.pretrained, offline=settings.offline)
    baselines.baselines(settings.contract.baseline_from)  # a missing run is reported before the first stage too
    data = data_record.look(settings, parts)  # faults are reported before the first stage, not after it
    _refuse_other_baselines(settings, parts, data)
    dry_run.rehearse(settings, parts)
    fresh = None if checkpoints.stages(workdir) else _start(settings, parts)
    with contextlib.ExitStack() as stack:
        written = workdir if devices.is_primary() else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(run_record.locked(written))
        learnt = stage_checkpoints.finished(workdir, settings, parts)
        done = 0 if learnt is None else len(learnt.stages)
        stage_checkpoints.refuse_another_in_training(workdir, settings, done=done)
        run_record.claim(written, settings.to_dict(), command=command, trains=done < len(settings.order))
        if done < len(settings.order):  # else the data there is what the figures are of
            data.write(written)
        asked = tuple(track) if devices.is_primary() else ()
        log = MetricsLog(written, trackers=asked, name=workdir.name, config=settings.to_dict())
        stack.enter_context(log)
        predict = evaluate.make_predict(parts.model, parts.tasks)
        run = Run(settings, parts, predict, workdir, written, log, preemption, data.digests())
        _tell_unmeasured(parts)
        _tell_unlabelled(parts)
        if learnt is None:
            learnt = fresh or _start(settings, parts)
        else:
            learnt = resumption.with_this_data(run, learnt, lambda: _start(settings, parts))
        for index in range(len(learnt.stages), len(settings.order)):
            learnt = _run_stage(run, index, learnt)
        return _conclude(run, learnt)


def _tell_unmeasured(parts: experiment.Experiment) -> None:
    """Says which streams label a task that is measured on another's images."""
    for task in parts.tasks:
        others = experiment.unmeasured_streams(parts, task)
        if others:
            on = " and ".join(experiment.measuring_streams(parts, task))
            data_record.tell(f"{task} is measured on {on}, not on {', '.join(others)}: eval.py measures on all")


def _tell_unlabelled(parts: experiment.Experiment) -> None:
    """Says which classes a stream leaves unlabelled."""
    for stream in parts.used_streams:
        data = experiment.source(parts, stream, training=True)
        for task, classes in experiment.classes_of(parts, stream, data).items():
            names = zip(parts.tasks[task].classes, classes.labelled, strict=True)
            others = [name for name, is_labelled in names if not is_labelled]
            if others:
                data_record.tell(
                    f"{stream} does not label {len(others)} of the {len(classes.labelled)} classes of {task} "
                    f"({findings.abbreviated(others)}): they are neither background nor learnt there"
                )


def _refuse_other_baselines(config: RunSettings, parts: experiment.Experiment, data: data_record.DataRecord) -> None:
    if not config.smoke:  # which measures on a few images, to try everything out
        streams = experiment.measured_streams(parts, parts.tasks)
        measured = {task: stream for stream, tasks in reversed(streams.items()) for task in tasks}  # the first
        data_changes.refuse_other_baselines(config.contract.baseline_from, measured, data.digests())


def _start(config: RunSettings, parts: experiment.Experiment) -> StageResult:
    given = {"pretrained_path": config.pretrained, "offline": config.offline}
    variables = experiment.init_variables(parts, key=jax.random.key(config.seed), **given)
    return StageResult(variables, memory.nothing(), stages=[], train_seconds=0.0, step=0)


def _run_stage(run: Run, index: int, learnt: StageResult) -> StageResult:
    """Trains and evaluates one stage, and saves it with what the later ones need."""
    started = time.monotonic()
    stage = stage_plan.plan(run.config, run.parts, index, learnt)
    skip = run.config.on_nan == "skip"
    state, steps, given = stage_setup.prepare(run.parts, stage, learnt, seed=run.config.seed, skip_not_finite=skip)
    course = StageClock(state, done=0, saved=0, started=started)
    with course.paused():
        before = measurement.before(run, stage, learnt, state)
    then = stage_checkpoints.resume(run, stage, course)
    resumption.tell_other_images(run, stage, course.done, then=then)
    run.log.resume_from(learnt.step + course.done)
    # Copies, because the step gives the state's buffers away, and the teacher's and the anchor's must stay.
    course.state, given = devices.copy_everywhere((course.state, given))
    with run.preemption.unsaved(lambda: stage_checkpoints.save_partial(run, stage, course)):
        stage_steps.take_all(run, stage, course, steps, given, learnt.step)
        variables = jax.device_get(stage_setup.evaluated(course.state))
        kept = _remembered(stage, learnt, course.state, variables)
        seconds = course.seconds
        finished = [*(each["name"] for each in learnt.stages), stage.name]
        figures = measurement.after(run, variables, stage.learnt_tasks, finished)
        end = learnt.step + stage.total_steps
        shown = {**figures["metrics"], **figures.get("added", {})}
        step_log.measured(run, stage, shown, step=end, done=stage.total_steps)
        history = [*learnt.stages, {"name": stage.name, **figures, **before, "data": run.data}]
        peak = max(learnt.peak_memory_mb or 0.0, devices.peak_memory_mb() or 0.0) or None
        chosen = measurement.calibration(run, variables, stage.learnt_tasks)
        after = StageResult(variables, kept, history, learnt.train_seconds + seconds, end, peak, chosen)
        stage_checkpoints.save(run, stage, after, course.state)
    return after


def _remembered(
    stage: StagePlan, learnt: StageResult, state: train_step.TrainState, variables: Mapping[str, PyTree]
) -> Memory:
    """What the stages so far leave to the later ones."""
    kept = learnt.memory
    for name, method in stage.view.keep.items():
        finished = Finished(learnt.variables, variables, state.keep_state.get(name))
        kept = method.after(stage.view, finished, kept)
    return kept


def _output_changes(run: Run, learnt: StageResult) -> dict[str, float]:
    """How far the outputs of old tasks have moved: since the parent, or since a stage said what becomes of them."""
    grown = lineage.read(run.workdir)
    added = len(grown["versions"][-1]["stages"]) if grown else 0
    index = len(run.config.order) - added if added else exactness.first_kept(run.config)
    before = next((each for each in checkpoints.stages(run.workdir) if each.index == index - 1), None)
    if index == 0 or before is None:
        return {}
    old = run.config.tasks_of(*run.config.order[:index])
    variables = checkpoints.load(before.path, {"variables": experiment.abstract_variables(run.parts)})["variables"]
    return output_change.largest(run.parts, variables, learnt.variables, old, stages=run.config.order[:index])


def _budgets(run: Run, learnt: StageResult, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Measures the costs of the network, with their limits."""
    limits, params = run.config.contract, learnt.variables["params"]
    size = limits.latency_image_size
    latency = evaluate.latency_ms(run.predict, learnt.variables, names, image_size=size)
    flops = evaluate.gigaflops(run.parts.model, learnt.variables, names, image_size=size)
    owners = dependence.params_by_owner(run.parts.model)
    count = sum(multi_task.parameter_count(params).values())
    return {
        "params": {"value": count, "limit": run.config.model.max_params},
        "train_seconds": {"value": learnt.train_seconds, "limit": limits.max_train_seconds},
        "latency_ms": {"value": latency, "limit": limits.max_latency_ms, "image_size": size},
        "gigaflops": {"value": flops, "limit": None, "image_size": size},
        "shared_percent": {"value": dependence.shared_percent(owners), "limit": None},
        "params_by_owner": {"value": owners, "limit": None},
        "peak_memory_mb": {"value": learnt.peak_memory_mb, "limit": None},
    }


def _conclude(run: Run, learnt: StageResult) -> dict[str, Any]:
    """Measures the budgets, judges the contract, and writes both and the report."""
    tasks, limits = run.parts.tasks, run.config.contract
    names = tuple(learnt.stages[-1]["metrics"])
    budgets = _budgets(run, learnt, names)
    verdict = contract.build(
        learnt.stages,
        {name: (tasks[name].main_metric, tasks[name].higher_is_better) for name in names},
        budgets,
        added={
            name: {each.stage: tasks[name].classes_of(each.stage) for each in tasks[name].additions} for name in names
        },
        max_drop_percent=limits.max_drop_percent,
        baselines=baselines.baselines(limits.baseline_from),
    )
    for name, entry in verdict["tasks"].items():
        measured = experiment.measuring_streams(run.parts, name)
        entry["stream"] = measured[0]
        entry["streams_not_measured"] = list(experiment.unmeasured_streams(run.parts, name))
        if measured[1:]:
            entry["streams_measured_too"] = list(measured[1:])
    for name, change in _output_changes(run, learnt).items():
        verdict["tasks"][name]["largest_output_change"] = change
    if grown := lineage.read(run.workdir):
        verdict["lineage"] = grown
    if learnt.calibration:
        verdict["calibration"] = measurement.calibration_figures(run, learnt.variables, learnt.calibration)
    files.write_json(run.written / "contract.json", verdict)
    shown = {}
    for stream, asked in experiment.measured_streams(run.parts, names).items():
        batches = experiment.eval_batches(run.parts, stream)
        judged = {name: calibrated(task, learnt.calibration.get(name)) for name, task in asked.items()}
        shown |= pictures.look(run.predict, learnt.variables, batches, judged, count=run.config.example_images)
    run_report.write(run.written, looked=shown)
    for name in ("report.html", "contract.json"):
        run.log.artifact(run.written / name)
    return verdict
