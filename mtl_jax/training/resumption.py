"""Resumption of a run: changes of its data since its finished stages, and figures of the present images."""

from __future__ import annotations

from collections.abc import Callable

from mtl_jax.training import measurement, stage_checkpoints, stage_plan, stage_setup
from mtl_jax.training.run_context import Run
from mtl_jax.training.stage_plan import StagePlan, StageResult
from mtl_jax.workdir import checkpoints, data_changes
from mtl_jax.workdir.data_record import log_line


def with_this_data(run: Run, result: StageResult, start: Callable[[], StageResult]) -> StageResult:
    """Says what of the data has changed since the finished stages were trained.

    Where validation images have, these stages are measured on those of now; a run whose stages are all finished keeps
    its figures.

    Args:
        run: that is resumed.
        result: what its last finished stage left.
        start: returns what its first stage began with.

    Raises:
        UserError: a stage's checkpoint is of another configuration.
        CheckpointError: a stage that is to be measured cannot be read.
    """
    streams = {name: tuple(settings.streams) for name, settings in run.config.stages.items()}
    training_changes = data_changes.trained_on_others(result.stages, streams, run.data)
    measurement_changes = data_changes.measured_on_others(result.stages, run.data)
    if len(result.stages) == len(run.config.order):
        if (run.workdir / "contract.json").exists():  # of an edited version there is none yet
            log_line("every stage is finished: nothing was trained; config.order may get further stages at its end")
        if training_changes or measurement_changes:
            changes = "; ".join([*training_changes, *([measurement_changes] if measurement_changes else [])])
            log_line(
                f"the data has changed since ({changes}): all figures are those of the old images; train on the new "
                f"ones in another --workdir, or measure on them with eval.py --weights {run.workdir}"
            )
        return result
    for message in training_changes:
        log_line(f"{message}; it stays as it is: to train it again, name another --workdir")
    if not measurement_changes:
        return result
    log_line(
        f"{measurement_changes}: the finished stages are measured again, so that all figures are of the same images"
    )
    return _measure_again(run, result, start())


def _measure_again(run: Run, result: StageResult, start: StageResult) -> StageResult:
    """Repeats for every finished stage what was measured before and after it."""
    previous_result, history = start, []
    for stage, place in zip(result.stages, checkpoints.stages(run.workdir), strict=False):
        stage_result = stage_checkpoints.read(place.path, run.config, run.setup)
        stage_names = [*(record["name"] for record in history), stage["name"]]
        figures = measurement.after(run, stage_result.variables, tuple(stage["metrics"]), stage_names)
        if "before" in stage:
            plan = stage_plan.plan(run.config, run.setup, len(history), previous_result)
            state, _, _ = stage_setup.prepare(run.setup, plan, previous_result, seed=run.config.seed)
            figures |= measurement.before(run, plan, previous_result, state)
        figures["data"] = data_changes.measured_now(stage.get("data", {}), run.data)
        history.append({**stage, **figures})
        previous_result = stage_result._replace(stages=list(history))
    return result._replace(stages=history)


def report_other_images(run: Run, stage: StagePlan, steps_done: int, *, old_digests: data_changes.Digests) -> None:
    """Says where a stage resumes with other training images than it began with.

    Args:
        run: of the stage.
        stage: in training.
        steps_done: its steps so far.
        old_digests: the data that it saw until there.
    """
    for change in data_changes.changed_streams(old_digests, run.data, "train", stage.settings.streams).values():
        log_line(f"stage {stage.name} resumes from step {steps_done} with other training images than before ({change})")
