"""Trains the stages one after another, evaluates, logs and saves: side effects live here only."""

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from mtl_jax import (
    checkpoints,
    compilation,
    contract,
    devices,
    evaluate,
    examples,
    experiment,
    remember,
    report,
    run_record,
    stage_plan,
    stages,
    train_step,
)
from mtl_jax import config as config_lib
from mtl_jax.continual import ewc, replay
from mtl_jax.data import pipeline
from mtl_jax.errors import UserError
from mtl_jax.losses import Memory
from mtl_jax.metrics_log import MetricsLog
from mtl_jax.models import multi_task
from mtl_jax.progress import StageProgress
from mtl_jax.stage_plan import Learnt, StagePlan


class Run(NamedTuple):
    """What every stage of one run shares."""

    config: Any
    parts: experiment.Experiment
    predict: evaluate.Predict
    workdir: Path  # shared by all processes of the run, and read by all
    written: Path  # where this process writes: the work directory, or a place of its own that is thrown away
    log: MetricsLog


def train_and_evaluate(config: Any, workdir: str | Path, *, command: str = "") -> dict[str, Any]:
    """Trains every stage of a config, or what is left of it, and judges the contract.

    Args:
        config: from a page of `configs/`.
        workdir: where the run's files go; a run that is there already is continued.
        command: for the record in `config.json`.

    Returns:
        The contract, as written to `contract.json`.

    Raises:
        UserError: a setting, a dataset or a work directory that does not fit.
        CheckpointError: a checkpoint that cannot be read or written.
    """
    workdir = Path(workdir)
    config_lib.resolve(config)
    parts = experiment.build(config.to_dict(), data_root=config_lib.data_root(config))
    run_record.baselines(config.contract.baseline_from.to_dict())  # a missing run is told before the first stage too
    for stream in _streams(config):  # a missing dataset is told before the first stage, not after it
        experiment.source(parts, stream, training=True)
        experiment.source(parts, stream, training=False)
    with contextlib.ExitStack() as stack:
        written = workdir if devices.is_primary() else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run_record.claim(written, config.to_dict(), command=command)
        log = stack.enter_context(MetricsLog(written))
        run = Run(config, parts, evaluate.make_predict(parts.model, parts.tasks), workdir, written, log)
        learnt = _finished_stages(run) or _start(run)
        for index in range(len(learnt.stages), len(config.order)):
            learnt = _run_stage(run, index, learnt)
        return _conclude(run, learnt)


def _streams(config: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(stream for stage in config.order for stream in config.stages[stage].streams))


def _start(run: Run) -> Learnt:
    variables = experiment.init_variables(
        run.parts, key=jax.random.key(run.config.seed), pretrained_path=run.config.pretrained
    )
    return Learnt(variables, anchors=(), replay={}, stages=[], train_seconds=0.0, step=0)


def _finished_stages(run: Run) -> Learnt | None:
    """Reads what the last finished stage left, if there is one."""
    done = checkpoints.stages(run.workdir)
    if not done:
        return None
    path = done[-1].path
    loaded = checkpoints.load(path, {"variables": experiment.abstract_variables(run.parts), "memory": None})
    record = checkpoints.read_metadata(path)
    return Learnt(
        variables=loaded["variables"],
        anchors=tuple(ewc.Anchor(**anchor) for _, anchor in sorted(loaded["memory"]["anchors"].items())),
        replay={stream: replay.from_tree(tree) for stream, tree in loaded["memory"]["replay"].items()},
        stages=record["stages"],
        train_seconds=record["train_seconds"],
        step=record["step"],
    )


def _run_stage(run: Run, index: int, learnt: Learnt) -> Learnt:
    """Trains and evaluates one stage, and saves it with what the later ones need."""
    started = time.monotonic()
    stage = stage_plan.plan(run.config, run.parts, index, learnt)
    state, steps, memory = stages.prepare(run.parts, stage, learnt, seed=run.config.seed)
    paused = time.monotonic()
    before = _evaluate_before(run, stage, state) if run.config.forward_transfer else {}
    started += time.monotonic() - paused
    state, seconds_before = _resumed(run, stage, state)
    run.log.resume_from(learnt.step + int(state.step))
    # Copies, because the step gives the state's buffers away, and the teacher's and the anchor's must stay.
    state, memory = devices.copy_everywhere((state, memory))
    state, pauses = _train(run, stage, state, steps, memory, learnt.step, started - seconds_before)
    variables = jax.device_get(stages.evaluated(state))
    anchors = remember.anchors(run.config, run.parts, stage, learnt, state, variables)
    buffers = remember.exemplars(run.config, run.parts, stage, learnt, variables)
    seconds = seconds_before + time.monotonic() - started - pauses
    metrics = _evaluate(run, variables, stage.learnt_tasks)
    end = learnt.step + stage.total_steps
    _log_metrics(run, stage, metrics, step=end)
    history = [*learnt.stages, {"name": stage.name, "metrics": metrics, **before}]
    after = Learnt(variables, anchors, buffers, history, learnt.train_seconds + seconds, end)
    _save_stage(run, stage, after, state)
    return after


def _partial(run: Run, stage: StagePlan) -> Path:
    return run.workdir / "partial" / f"{stage.index}-{stage.name}"


def _resumed(run: Run, stage: StagePlan, state: train_step.TrainState) -> tuple[train_step.TrainState, float]:
    """Returns the state of the stage's partial checkpoint, if there is one, and the seconds already spent."""
    path = _partial(run, stage)
    if not checkpoints.is_complete(path):
        return state, 0.0
    return checkpoints.load(path, {"state": state})["state"], checkpoints.read_metadata(path)["seconds"]


def _train(
    run: Run,
    stage: StagePlan,
    state: train_step.TrainState,
    steps: Mapping[int, train_step.Step],
    memory: Memory,
    steps_before: int,
    started: float,
) -> tuple[train_step.TrainState, float]:
    """Takes the stage's remaining steps; returns the state and the seconds spent on evaluations in between."""
    first, pauses, saved = int(state.step), 0.0, time.monotonic()
    compiled: dict[tuple[int, tuple[str, ...]], Any] = {}  # for each phase of the stage, and the streams of a batch
    evaluate_every = round(stage.settings.eval_every_epochs * stage.steps_per_epoch)
    pending: Any = None
    with StageProgress(
        stage.name,
        steps=stage.total_steps,
        steps_per_epoch=stage.steps_per_epoch,
        start_step=first,
        quiet=not devices.is_primary(),
    ) as progress:
        for done, batch in enumerate(_batches(run, stage, first), start=first + 1):
            program = (max(start for start in steps if start < done), tuple(batch))
            if program not in compiled:
                compiled[program] = compilation.ahead_of_time(steps[program[0]], state, memory, batch)
            state, metrics = compiled[program](state, memory, batch)
            images = sum(stage.batch_sizes[stream] for stream in batch)
            if pending is not None:  # the step before is read while this one runs
                _finish_step(run, stage, progress, *pending, steps_before=steps_before)
            pending = (done, images, metrics)
            if done == stage.total_steps:
                break
            save = time.monotonic() - saved > run.config.checkpoint_every_seconds
            if jax.process_count() > 1:  # clocks differ, and asking at every step would slow them all
                save = done % run.config.log_every_steps == 0 and devices.agreed(save)
            evaluate_now = evaluate_every and done % evaluate_every == 0
            if save or evaluate_now:
                _finish_step(run, stage, progress, *pending, steps_before=steps_before)
                pending = None
            if evaluate_now:
                paused = time.monotonic()
                figures = _evaluate(run, jax.device_get(stages.evaluated(state)), stage.learnt_tasks)
                _log_metrics(run, stage, figures, step=steps_before + done, done=done)
                pauses += time.monotonic() - paused
                progress.after_pause()
            if save:
                seconds = time.monotonic() - started - pauses
                checkpoints.save(_partial(run, stage), {"state": state}, {"step": done, "seconds": seconds})
                saved = time.monotonic()
                progress.after_pause()
        if pending is not None:
            _finish_step(run, stage, progress, *pending, steps_before=steps_before)
    return state, pauses


def _batches(run: Run, stage: StagePlan, first: int) -> Iterator[dict[str, Any]]:
    """The stage's batches from step `first` on, split over the devices."""
    streams = {
        name: pipeline.prefetch(batches, start=stage.batches_before(first, name), threads=run.config.loader_threads)
        for name, batches in stage.data.items()
    }
    for step in itertools.count(first):
        batch = {name: next(stream) for name, stream in streams.items() if stage.takes(step, name)}
        yield devices.place(batch, stage.batch_sizes)


def _finish_step(
    run: Run,
    stage: StagePlan,
    progress: StageProgress,
    done: int,
    images: int,
    metrics: Mapping[str, jax.Array],
    *,
    steps_before: int,
) -> None:
    """Shows one step, logs it where its turn is, and stops where the loss is not finite."""
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    progress.advance(images=images, loss=values["all/loss"])
    if not math.isfinite(values["all/loss"]):
        culprits = ", ".join(name for name, value in values.items() if not math.isfinite(value))
        raise UserError(
            f"the loss of stage {stage.name} is {values['all/loss']} at step {done} ({culprits}); the checkpoints in "
            f"{run.workdir} are of earlier steps and intact; try a smaller config.stages.{stage.name}.learning_rate"
        )
    if done % run.config.log_every_steps and done not in (1, stage.total_steps):
        return
    if progress.images_per_second is not None:
        values["all/images_per_second"] = progress.images_per_second
        values["all/step_ms"] = 1e3 * images / progress.images_per_second
    for path, value in values.items():
        task, _, name = path.partition("/")
        epoch = done / stage.steps_per_epoch
        run.log.log(steps_before + done, epoch, stage.name, "train", None if task == "all" else task, name, value)


def _log_metrics(
    run: Run,
    stage: StagePlan,
    metrics: Mapping[str, Mapping[str, float]],
    *,
    step: int,
    done: int | None = None,
) -> None:
    epoch = (stage.total_steps if done is None else done) / stage.steps_per_epoch
    for task, figures in metrics.items():
        for name, value in figures.items():
            run.log.log(step, epoch, stage.name, "val", task, name, value)


def _evaluate(run: Run, variables: PyTree, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Measures tasks on the validation data of the first stream that labels them."""
    metrics: dict[str, dict[str, float]] = {}
    for stream in _streams(run.config):
        tasks = {
            name: task
            for name, task in experiment.stream_tasks(run.parts, stream).items()
            if name in names and name not in metrics
        }
        if tasks:
            batches = experiment.eval_batches(run.parts, stream)
            metrics |= evaluate.evaluate(run.predict, variables, batches, tasks)
    return {name: metrics[name] for name in names}


def _evaluate_before(run: Run, stage: StagePlan, state: train_step.TrainState) -> dict[str, Any]:
    """Measures what the stage will teach before it does; before the first one, every task of the run."""
    names = stage.learnt_tasks
    if stage.index == 0:
        labelled = [task for stream in _streams(run.config) for task in run.config.streams[stream].labels]
        names = tuple(dict.fromkeys(labelled))
    return {"before": _evaluate(run, jax.device_get(stages.evaluated(state)), names)}


def _save_stage(run: Run, stage: StagePlan, after: Learnt, state: train_step.TrainState) -> None:
    checkpoints.save(
        run.workdir / "checkpoints" / f"{stage.index}-{stage.name}",
        {
            "variables": after.variables,
            "training": {
                "params": state.params,  # before averaging
                "opt_state": state.opt_state,
                "balance_state": state.balance_state,
                "key": state.key,
            },
            "memory": {
                "anchors": {str(number): anchor._asdict() for number, anchor in enumerate(after.anchors)},
                "replay": {stream: replay.to_tree(buffer) for stream, buffer in after.replay.items()},
            },
        },
        contract.without_nan(
            {
                "stage": stage.name,
                "stages": after.stages,
                "train_seconds": after.train_seconds,
                "step": after.step,
                "data_position": {name: stage.batches_before(stage.total_steps, name) for name in stage.data},
                "config": run.config.to_dict(),
            }
        ),
    )
    checkpoints.delete(_partial(run, stage))


def _conclude(run: Run, learnt: Learnt) -> dict[str, Any]:
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
    budgets["peak_memory_mb"] = {"value": devices.peak_memory_mb(), "limit": None}
    verdict = contract.build(
        learnt.stages,
        {name: (tasks[name].main_metric, tasks[name].higher_is_better) for name in names},
        budgets,
        max_drop_percent=limits.max_drop_percent,
        baselines=run_record.baselines(limits.baseline_from.to_dict()),
    )
    contract.write_json(run.written / "contract.json", verdict)
    shown = {}
    for stream in _streams(run.config):
        shown |= examples.render(
            run.predict,
            learnt.variables,
            experiment.eval_batches(run.parts, stream),
            {name: task for name, task in experiment.stream_tasks(run.parts, stream).items() if name not in shown},
            count=run.config.example_images,
        )
    report.write(run.written, examples=shown)
    return verdict
