"""Logs steps and measurements of a stage, and names the loss and the images of a step that is not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax

from mtl_jax.errors import UserError
from mtl_jax.runtime import devices
from mtl_jax.runtime.progress import StageProgress
from mtl_jax.training import stage_checkpoints
from mtl_jax.training.run_context import Run
from mtl_jax.training.stage_plan import StagePlan


def log_step(
    run: Run,
    stage: StagePlan,
    progress: StageProgress,
    steps_done: int,
    ids: Mapping[str, tuple[str, ...]],
    metrics: Mapping[str, jax.Array],
    *,
    steps_before: int,
) -> None:
    """Shows one step, logs it where its turn is, and stops, or warns, where it is not finite.

    Args:
        run: that the stage is of.
        stage: that the step is of.
        progress: on the screen.
        steps_done: steps of the stage.
        ids: of the samples, by stream.
        metrics: of the step, by "task/name".
        steps_before: of the stages before.

    Raises:
        UserError: a loss or gradient is not finite, and `on_nan` says "raise".
    """
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    images = sum(stage.batch_sizes[stream] for stream in ids)
    progress.advance(images=images, loss=values["all/loss"])
    _check_finite(run, stage, progress, steps_done, ids, values)
    if steps_done % run.config.log_every_steps and steps_done not in (1, stage.total_steps):
        return
    if progress.images_per_second is not None:
        values["all/images_per_second"] = progress.images_per_second
        values["all/step_ms"] = 1e3 * images / progress.images_per_second
    if (held_mb := devices.memory_mb()) is not None:
        values["all/memory_mb"] = held_mb
    for path, value in values.items():
        task, _, name = path.partition("/")
        epoch = steps_done / stage.steps_per_epoch
        run.log.log(steps_before + steps_done, epoch, stage.name, "train", None if task == "all" else task, name, value)


def _check_finite(
    run: Run,
    stage: StagePlan,
    progress: StageProgress,
    steps_done: int,
    ids: Mapping[str, tuple[str, ...]],
    values: Mapping[str, float],
) -> None:
    if math.isfinite(values["all/loss"]) and math.isfinite(values["all/gradient_norm"]):
        return
    problem = _not_finite(stage, steps_done, ids, values)
    if run.config.on_nan != "skip":
        raise UserError(
            f"{problem}; the checkpoints in {run.workdir} are of earlier steps and intact (the last: "
            f"{stage_checkpoints.newest(run, stage) or 'none yet'}); try a smaller "
            f"config.stages.{stage.name}.learning_rate, correct the samples, or leave such steps "
            "out with --config.on_nan=skip"
        )
    progress.note(f"{problem}; the step is left out ({values['all/skipped_steps']:.0f} in this stage so far)")


def _not_finite(
    stage: StagePlan, steps_done: int, ids: Mapping[str, tuple[str, ...]], values: Mapping[str, float]
) -> str:
    """Which step is not finite, and whose: of what tasks, streams and samples."""
    figure = next(name for name in ("all/loss", "all/gradient_norm") if not math.isfinite(values[name]))
    culprits = [name for name, value in values.items() if not math.isfinite(value) and not name.startswith("all/")]
    tasks = {name.partition("/")[0] for name in culprits}
    streams = [stream for stream in ids if tasks & set(stage.objectives[0].streams[stream])] or list(ids)
    samples = "; ".join(f"{stream}: {', '.join(ids[stream])}" for stream in streams)
    return (
        f"the {figure.removeprefix('all/').replace('_', ' ')} of stage {stage.name} is {values[figure]} at step "
        f"{steps_done} ({', '.join(culprits) or 'of no single task'}; samples of stream {samples})"
    )


def log_metrics(
    run: Run, stage: StagePlan, metrics: Mapping[str, Mapping[str, float]], *, step: int, steps_done: int
) -> None:
    """Logs what was measured of a stage on validation images, by task and figure."""
    epoch = steps_done / stage.steps_per_epoch
    for task, figures in metrics.items():
        for name, value in figures.items():
            run.log.log(step, epoch, stage.name, "val", task, name, value)
