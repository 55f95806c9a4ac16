"""Takes the steps of one stage: batches, compiled programs, saving and leaving between steps."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jaxtyping import PyTree

from mtl_jax.data import pipeline
from mtl_jax.runtime import compilation, devices
from mtl_jax.runtime.preemption import Preempted
from mtl_jax.runtime.progress import StageProgress
from mtl_jax.training import measurement, stage_checkpoints, stage_setup, step_log, train_step
from mtl_jax.training.run_context import Run
from mtl_jax.training.stage_checkpoints import StageClock
from mtl_jax.training.stage_plan import StagePlan


def take_all(
    run: Run,
    stage: StagePlan,
    course: StageClock,
    steps: Mapping[int, train_step.Step],
    method_inputs: Mapping[str, PyTree],
    steps_before: int,
) -> None:
    """Takes a stage's remaining steps.

    Args:
        run: that the stage is of.
        stage: to train.
        course: where it is; advances with every step.
        steps: by the step with which each begins.
        method_inputs: of the stages before.
        steps_before: of the stages before.

    Raises:
        UserError: a loss or gradient that is not finite.
        Preempted: the run received a stop request, and has saved.
    """
    last_save = time.monotonic()
    evaluate_every = round(stage.settings.eval_every_epochs * stage.steps_per_epoch)
    with (
        StageProgress(
            stage.name,
            steps=stage.total_steps,
            steps_per_epoch=stage.steps_per_epoch,
            start_step=course.step,
            quiet=not devices.is_primary(),
        ) as progress,
        run.preemption.training(),
    ):
        step_loop = _Steps(run, stage, course, steps, method_inputs, progress, steps_before)
        for batch, ids in _batches(run, stage, course.step):
            step_loop.take(batch, ids)
            if course.step == stage.total_steps:
                break
            save, leave = _save_and_leave(run, course.step, since=last_save)
            if save or leave:
                step_loop.finish()
                stage_checkpoints.save_partial(run, stage, course)
                last_save = time.monotonic()
                progress.after_pause()
            if leave:
                raise Preempted
            if evaluate_every and course.step % evaluate_every == 0:
                step_loop.finish()
                _evaluate_within(run, stage, course, steps_before)
                progress.after_pause()
        step_loop.finish()


@dataclasses.dataclass
class _Steps:
    """The steps of a stage; the figures of each are read while the next one runs."""

    run: Run
    stage: StagePlan
    course: StageClock
    steps: Mapping[int, train_step.Step]  # by the step with which each begins
    method_inputs: Mapping[str, PyTree]  # of the stages before
    progress: StageProgress
    steps_before: int  # of the stages before
    # For each phase of the stage, and the streams of a batch.
    compiled: dict[tuple[int, tuple[str, ...]], Any] = dataclasses.field(default_factory=dict)
    unlogged: tuple[int, Mapping[str, tuple[str, ...]], Mapping[str, jax.Array]] | None = None

    def take(self, batch: dict[str, Any], ids: Mapping[str, tuple[str, ...]]) -> None:
        """Takes a step, and reads the one before it."""
        program = self._program(batch)
        self.course.state, metrics = program(self.course.state, self.method_inputs, batch)
        self.finish()
        self.course.step += 1
        self.unlogged = (self.course.step, ids, metrics)

    def finish(self) -> None:
        """Reads the last step, unless it has been read."""
        if self.unlogged is not None:
            step_log.log_step(self.run, self.stage, self.progress, *self.unlogged, steps_before=self.steps_before)
        self.unlogged = None

    def _program(self, batch: dict[str, Any]) -> Any:
        phase = max(start for start in self.steps if start <= self.course.step)
        key = (phase, tuple(batch))
        if key not in self.compiled:
            self.finish()
            with self.run.preemption.paused():
                self.compiled[key] = compiled(self.steps[phase], self.course.state, self.method_inputs, batch)
        return self.compiled[key]


def compiled(step: train_step.Step, *arguments: Any) -> Any:
    """Compiles a step for arguments of the kind that it will be called with; a call gives the state's memory away."""
    return compilation.ahead_of_time(step, *arguments, donate_argnums=0, out_shardings=devices.everywhere())


def _save_and_leave(run: Run, steps_done: int, *, since: float) -> tuple[bool, bool]:
    """Returns whether to save and whether to end, with equal results in every process."""
    save, leave = time.monotonic() - since > run.config.checkpoint_every_seconds, run.preemption.requested
    if jax.process_count() > 1:  # clocks and signals differ, and asking at every step would slow them all
        ask = steps_done % run.config.log_every_steps == 0
        save, leave = ask and devices.agreed(save), ask and devices.agreed(leave)
    return save, leave


def _evaluate_within(run: Run, stage: StagePlan, course: StageClock, steps_before: int) -> None:
    """Measures a stage that is not at its end, for the curves; the time is not the training's."""
    with course.paused(), run.preemption.paused():
        variables = jax.device_get(stage_setup.evaluated(course.state))
        figures = measurement.tasks(run, variables, stage.learnt_tasks)
        step_log.log_metrics(run, stage, figures, step=steps_before + course.step, steps_done=course.step)


def _batches(run: Run, stage: StagePlan, first: int) -> Iterator[tuple[dict[str, Any], dict[str, tuple[str, ...]]]]:
    """The stage's batches after its first so many steps, split over the devices, and the ids of their samples."""
    if first == stage.total_steps:
        return
    streams = {
        name: pipeline.prefetch(
            batches,
            start=stage.batches_before(first, name),
            threads=run.config.loader_threads,
            processes=run.config.loader_processes,
        )
        for name, batches in stage.data.items()
    }
    for step in itertools.count(first):
        batch = {name: next(stream) for name, stream in streams.items() if stage.takes(step, name)}
        ids = {name: stream_batch.pop("ids") for name, stream_batch in batch.items()}
        yield devices.place(batch, stage.batch_sizes), ids
