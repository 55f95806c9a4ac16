"""Resumption of a run: changes of its data since its finished stages, and figures of the present images."""

from __future__ import annotations

from collections.abc import Callable

from mtl_jax.training import measurement, stage_checkpoints, stage_plan, stage_setup
from mtl_jax.training.run_context import Run
from mtl_jax.training.stage_plan import StagePlan, StageResult
from mtl_jax.workdir import checkpoints, data_changes
from mtl_jax.workdir.data_record import tell


def with_this_data(run: Run, learnt: StageResult, start: Callable[[], StageResult]) -> StageResult:
    """Says what of the data has changed since the finished stages were trained.

    Where validation images have, these stages are measured on those of now; a run whose stages are all finished keeps
    its figures.

    Args:
        run: that is resumed.
        learnt: what its last finished stage left.
        start: returns what its first stage began with.

    Raises:
        UserError: a stage's checkpoint is of another configuration.
        CheckpointError: a stage that is to be measured cannot be read.
    """
    streams = {name: tuple(settings.streams) for name, settings in run.config.stages.items()}
    trained = data_changes.trained_on_others(learnt.stages, streams, run.data)
    measured = data_changes.measured_on_others(learnt.stages, run.data)
    if len(learnt.stages) == len(run.config.order):
        tell("every stage is finished already: nothing was trained; config.order may get further stages at its end")
        if trained or measured:
            tell(
                f"the data has changed since ({'; '.join([*trained, *([measured] if measured else [])])}): all figures "
                "are those of the old images; train on the new ones in another --workdir, or measure on them with "
                f"eval.py --weights {run.workdir}"
            )
        return learnt
    for said in trained:
        tell(f"{said}; it stays as it is: to train it again, name another --workdir")
    if not measured:
        return learnt
    tell(f"{measured}: the finished stages are measured again, so that all figures are of the same images")
    return _measured_again(run, learnt, start())


def _measured_again(run: Run, learnt: StageResult, start: StageResult) -> StageResult:
    """Repeats for every finished stage what was measured before and after it."""
    previous, history = start, []
    for stage, place in zip(learnt.stages, checkpoints.stages(run.workdir), strict=False):
        then = stage_checkpoints.read(place.path, run.config, run.parts)
        finished = [*(each["name"] for each in history), stage["name"]]
        again = measurement.after(run, then.variables, tuple(stage["metrics"]), finished)
        if "before" in stage:
            planned = stage_plan.plan(run.config, run.parts, len(history), previous)
            state, _, _ = stage_setup.prepare(run.parts, planned, previous, seed=run.config.seed)
            again |= measurement.before(run, planned, previous, state)
        again["data"] = data_changes.measured_now(stage.get("data", {}), run.data)
        history.append({**stage, **again})
        previous = then._replace(stages=list(history))
    return learnt._replace(stages=history)


def tell_other_images(run: Run, stage: StagePlan, done: int, *, then: data_changes.Digests) -> None:
    """Says where a stage resumes with other training images than it began with.

    Args:
        run: of the stage.
        stage: in training.
        done: its steps so far.
        then: the data that it saw until there.
    """
    for changed in data_changes.others(then, run.data, "train", stage.settings.streams).values():
        tell(f"stage {stage.name} resumes from step {done} with other training images than before ({changed})")
