"""Trains the stages one after another, evaluates, logs and saves: side effects live here only."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from mtl_jax import config as config_lib
from mtl_jax import experiment
from mtl_jax.config.run_settings import RunSettings
from mtl_jax.continual import memory, reading
from mtl_jax.continual.method import Finished, Memory
from mtl_jax.data import findings, pipeline
from mtl_jax.errors import UserError
from mtl_jax.evaluation import baselines, contract, evaluate, output_change
from mtl_jax.models import dependence, multi_task
from mtl_jax.report import pictures, run_report
from mtl_jax.runtime import compilation, devices
from mtl_jax.runtime.preemption import Preempted, Preemption
from mtl_jax.runtime.progress import StageProgress
from mtl_jax.training import (
    dry_run,
    exactness,
    measurement,
    resumption,
    stage_checkpoints,
    stage_plan,
    stage_setup,
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
    dry_run.rehearse(settings, parts, data=False)  # a mistake in the last stage is told before any image is read
    if not checkpoints.stages(workdir):  # a run that goes on has its weights
        experiment.check_weights(parts, pretrained_path=settings.pretrained, offline=settings.offline)
    baselines.baselines(settings.contract.baseline_from)  # a missing run is told before the first stage too
    data = data_record.look(settings, parts)  # what is wrong is told before the first stage, not after it
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
        measured = experiment.measuring_streams(parts, task)
        others = [name for name in experiment.labelling_streams(parts, task) if name not in measured]
        if others:
            on = " and ".join(measured)
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
                    f"({findings.some(others)}): they are neither background nor learnt there"
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
        _train(run, stage, course, steps, given, learnt.step)
        variables = jax.device_get(stage_setup.evaluated(course.state))
        kept = _remembered(stage, learnt, course.state, variables)
        seconds = course.seconds
        metrics = measurement.tasks(run, variables, stage.learnt_tasks)
        end = learnt.step + stage.total_steps
        _log_metrics(run, stage, metrics, step=end, done=stage.total_steps)
        history = [*learnt.stages, {"name": stage.name, "metrics": metrics, **before, "data": run.data}]
        peak = max(learnt.peak_memory_mb or 0.0, devices.peak_memory_mb() or 0.0) or None
        after = StageResult(variables, kept, history, learnt.train_seconds + seconds, end, peak)
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


def _train(
    run: Run,
    stage: StagePlan,
    course: StageClock,
    steps: Mapping[int, train_step.Step],
    given: Mapping[str, PyTree],
    steps_before: int,
) -> None:
    """Takes the stage's remaining steps."""
    saved = time.monotonic()
    evaluate_every = round(stage.settings.eval_every_epochs * stage.steps_per_epoch)
    with (
        StageProgress(
            stage.name,
            steps=stage.total_steps,
            steps_per_epoch=stage.steps_per_epoch,
            start_step=course.done,
            quiet=not devices.is_primary(),
        ) as progress,
        run.preemption.training(),
    ):
        ahead = _Steps(run, stage, course, steps, given, progress, steps_before)
        for batch, ids in _batches(run, stage, course.done):
            ahead.take(batch, ids)
            if course.done == stage.total_steps:
                break
            save, leave = _save_and_leave(run, course.done, since=saved)
            if save or leave:
                ahead.finish()
                stage_checkpoints.save_partial(run, stage, course)
                saved = time.monotonic()
                progress.after_pause()
            if leave:
                raise Preempted
            if evaluate_every and course.done % evaluate_every == 0:
                ahead.finish()
                _evaluate_within(run, stage, course, steps_before)
                progress.after_pause()
        ahead.finish()


@dataclasses.dataclass
class _Steps:
    """The steps of a stage; the figures of each are read while the next one runs."""

    run: Run
    stage: StagePlan
    course: StageClock
    steps: Mapping[int, train_step.Step]  # by the step with which each begins
    given: Mapping[str, PyTree]  # of the stages before
    progress: StageProgress
    steps_before: int  # of the stages before
    # For each phase of the stage, and the streams of a batch.
    compiled: dict[tuple[int, tuple[str, ...]], Any] = dataclasses.field(default_factory=dict)
    pending: tuple[int, Mapping[str, tuple[str, ...]], Mapping[str, jax.Array]] | None = None

    def take(self, batch: dict[str, Any], ids: Mapping[str, tuple[str, ...]]) -> None:
        """Takes a step, and reads the one before it."""
        program = self._program(batch)
        self.course.state, metrics = program(self.course.state, self.given, batch)
        self.finish()
        self.course.done += 1
        self.pending = (self.course.done, ids, metrics)

    def finish(self) -> None:
        """Reads the last step, unless it has been read."""
        if self.pending is not None:
            _finish_step(self.run, self.stage, self.progress, *self.pending, steps_before=self.steps_before)
        self.pending = None

    def _program(self, batch: dict[str, Any]) -> Any:
        phase = max(start for start in self.steps if start <= self.course.done)
        key = (phase, tuple(batch))
        if key not in self.compiled:
            self.finish()
            with self.run.preemption.paused():
                state = self.course.state
                self.compiled[key] = compilation.ahead_of_time(self.steps[phase], state, self.given, batch)
        return self.compiled[key]


def _save_and_leave(run: Run, done: int, *, since: float) -> tuple[bool, bool]:
    """Whether it is time to save, and whether the run is asked to end: the same in every process."""
    save, leave = time.monotonic() - since > run.config.checkpoint_every_seconds, run.preemption.requested
    if jax.process_count() > 1:  # clocks and signals differ, and asking at every step would slow them all
        ask = done % run.config.log_every_steps == 0
        save, leave = ask and devices.agreed(save), ask and devices.agreed(leave)
    return save, leave


def _evaluate_within(run: Run, stage: StagePlan, course: StageClock, steps_before: int) -> None:
    """Measures a stage that is not at its end, for the curves; the time is not the training's."""
    with course.paused(), run.preemption.paused():
        variables = jax.device_get(stage_setup.evaluated(course.state))
        figures = measurement.tasks(run, variables, stage.learnt_tasks)
        _log_metrics(run, stage, figures, step=steps_before + course.done, done=course.done)


def _batches(run: Run, stage: StagePlan, first: int) -> Iterator[tuple[dict[str, Any], dict[str, tuple[str, ...]]]]:
    """The stage's batches after its first so many steps, split over the devices, and the ids of their samples."""
    if first == stage.total_steps:
        return
    streams = {
        name: pipeline.prefetch(batches, start=stage.batches_before(first, name), threads=run.config.loader_threads)
        for name, batches in stage.data.items()
    }
    for step in itertools.count(first):
        batch = {name: next(stream) for name, stream in streams.items() if stage.takes(step, name)}
        ids = {name: each.pop("ids") for name, each in batch.items()}
        yield devices.place(batch, stage.batch_sizes), ids


def _finish_step(
    run: Run,
    stage: StagePlan,
    progress: StageProgress,
    done: int,
    ids: Mapping[str, tuple[str, ...]],
    metrics: Mapping[str, jax.Array],
    *,
    steps_before: int,
) -> None:
    """Shows one step, logs it where its turn is, and stops, or tells, where it is not finite."""
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    images = sum(stage.batch_sizes[stream] for stream in ids)
    progress.advance(images=images, loss=values["all/loss"])
    if not math.isfinite(values["all/loss"]) or not math.isfinite(values["all/gradient_norm"]):
        found = _not_finite(stage, done, ids, values)
        if run.config.on_nan != "skip":
            raise UserError(
                f"{found}; the checkpoints in {run.workdir} are of earlier steps and intact (the last: "
                f"{stage_checkpoints.newest(run, stage) or 'none yet'}); try a smaller "
                f"config.stages.{stage.name}.learning_rate, correct the samples, or leave such steps "
                "out with --config.on_nan=skip"
            )
        progress.note(f"{found}; the step is left out ({values['all/skipped_steps']:.0f} in this stage so far)")
    if done % run.config.log_every_steps and done not in (1, stage.total_steps):
        return
    if progress.images_per_second is not None:
        values["all/images_per_second"] = progress.images_per_second
        values["all/step_ms"] = 1e3 * images / progress.images_per_second
    if (held_mb := devices.memory_mb()) is not None:
        values["all/memory_mb"] = held_mb
    for path, value in values.items():
        task, _, name = path.partition("/")
        epoch = done / stage.steps_per_epoch
        run.log.log(steps_before + done, epoch, stage.name, "train", None if task == "all" else task, name, value)


def _not_finite(stage: StagePlan, done: int, ids: Mapping[str, tuple[str, ...]], values: Mapping[str, float]) -> str:
    """Which step is not finite, and whose: of what tasks, streams and samples."""
    figure = next(name for name in ("all/loss", "all/gradient_norm") if not math.isfinite(values[name]))
    culprits = [name for name, value in values.items() if not math.isfinite(value) and not name.startswith("all/")]
    tasks = {name.partition("/")[0] for name in culprits}
    streams = [stream for stream in ids if tasks & set(stage.objectives[0].streams[stream])] or list(ids)
    samples = "; ".join(f"{stream}: {', '.join(ids[stream])}" for stream in streams)
    return (
        f"the {figure.removeprefix('all/').replace('_', ' ')} of stage {stage.name} is {values[figure]} at step {done} "
        f"({', '.join(culprits) or 'of no single task'}; samples of stream {samples})"
    )


def _log_metrics(
    run: Run, stage: StagePlan, metrics: Mapping[str, Mapping[str, float]], *, step: int, done: int
) -> None:
    epoch = done / stage.steps_per_epoch
    for task, figures in metrics.items():
        for name, value in figures.items():
            run.log.log(step, epoch, stage.name, "val", task, name, value)


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
    return output_change.largest(run.parts, variables, learnt.variables, old)


def _conclude(run: Run, learnt: StageResult) -> dict[str, Any]:
    """Measures the budgets, judges the contract, and writes both and the report."""
    tasks, limits = run.parts.tasks, run.config.contract
    names = tuple(learnt.stages[-1]["metrics"])
    size = limits.latency_image_size
    budgets = {
        "params": {
            "value": sum(multi_task.parameter_count(learnt.variables["params"]).values()),
            "limit": run.config.model.max_params,
        },
        "train_seconds": {"value": learnt.train_seconds, "limit": limits.max_train_seconds},
        "latency_ms": {
            "value": evaluate.latency_ms(run.predict, learnt.variables, names, image_size=size),
            "limit": limits.max_latency_ms,
            "image_size": size,
        },
    }
    budgets["gigaflops"] = {
        "value": evaluate.gigaflops(run.parts.model, learnt.variables, names, image_size=size),
        "limit": None,
        "image_size": size,
    }
    owners = dependence.params_by_owner(run.parts.model)
    budgets["shared_percent"] = {"value": dependence.shared_percent(owners), "limit": None}
    budgets["params_by_owner"] = {"value": owners, "limit": None}
    budgets["peak_memory_mb"] = {"value": learnt.peak_memory_mb, "limit": None}
    verdict = contract.build(
        learnt.stages,
        {name: (tasks[name].main_metric, tasks[name].higher_is_better) for name in names},
        budgets,
        max_drop_percent=limits.max_drop_percent,
        baselines=baselines.baselines(limits.baseline_from),
    )
    for name, entry in verdict["tasks"].items():
        measured = experiment.measuring_streams(run.parts, name)
        entry["stream"] = measured[0]
        streams = experiment.labelling_streams(run.parts, name)
        entry["streams_not_measured"] = [stream for stream in streams if stream not in measured]
        if measured[1:]:
            entry["streams_measured_too"] = list(measured[1:])
    for name, change in _output_changes(run, learnt).items():
        verdict["tasks"][name]["largest_output_change"] = change
    if grown := lineage.read(run.workdir):
        verdict["lineage"] = grown
    files.write_json(run.written / "contract.json", verdict)
    shown = {}
    for stream, asked in experiment.measured_streams(run.parts, names).items():
        batches = experiment.eval_batches(run.parts, stream)
        shown |= pictures.look(run.predict, learnt.variables, batches, asked, count=run.config.example_images)
    run_report.write(run.written, looked=shown)
    for name in ("report.html", "contract.json"):
        run.log.artifact(run.written / name)
    return verdict
