"""Checkpoints of a run: its finished stages, and the state of the stage in training."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mtl_jax import experiment
from mtl_jax.config import legacy
from mtl_jax.config.run_settings import RunSettings
from mtl_jax.continual import memory
from mtl_jax.errors import UserError
from mtl_jax.runtime import devices
from mtl_jax.tasks import calibration
from mtl_jax.training import exactness
from mtl_jax.training.run_context import Run
from mtl_jax.training.stage_plan import StagePlan, StageResult
from mtl_jax.training.train_step import TrainState
from mtl_jax.workdir import checkpoints, continuation, data_changes, files, run_record

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class StageClock:
    """How far a stage is."""

    state: TrainState
    step: int  # finished steps
    saved: int  # the last of them that is on disk
    started: float  # monotonic seconds, moved forward by every pause

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out of the stage's seconds what is not training."""
        pause_start = time.monotonic()
        yield
        self.started += time.monotonic() - pause_start

    @property
    def seconds(self) -> float:
        """That the stage has taken so far."""
        return time.monotonic() - self.started


def last_result(workdir: Path, config: RunSettings, setup: experiment.Experiment) -> StageResult | None:
    """Reads what the last finished stage left, if there is one.

    Args:
        workdir: of the run.
        config: the resolved configuration.
        setup: what it describes.

    Raises:
        UserError: the finished stages were trained with other settings.
    """
    path = checkpoints.newest_sound(stage.path for stage in reversed(checkpoints.stages(workdir)))
    if path is None:
        return None
    record = checkpoints.read_metadata(path)
    later_stages = continuation.refuse_another(path, record["config"], config.to_dict(), stages=len(record["stages"]))
    if later_stages:
        _log.warning("going on from %s with other settings of what follows: %s", path, "; ".join(later_stages))
    return read(path, config, setup)


def read(path: Path, config: RunSettings, setup: experiment.Experiment) -> StageResult:
    """Reads what a finished stage left; the arguments and errors are those of `finished`."""
    record = checkpoints.read_metadata(path)
    continuation.refuse_another(path, record["config"], config.to_dict(), stages=len(record["stages"]))
    restored = checkpoints.load(path, {"variables": experiment.abstract_variables(setup), "memory": None})
    return StageResult(
        variables=restored["variables"],
        memory=memory.from_tree(restored["memory"]),
        stages=record["stages"],
        train_seconds=record["train_seconds"],
        step=record["step"],
        peak_memory_mb=record.get("peak_memory_mb"),
        calibration=calibration.from_tree(record.get("calibration", {})),
    )


def refuse_another_in_training(workdir: Path, config: RunSettings, *, steps_done: int) -> None:
    """Checks that a stage which is partly trained is the one to train next, with the same settings.

    Args:
        workdir: of the run.
        config: the resolved configuration.
        steps_done: how many stages are finished.

    Raises:
        UserError: it is another, or its settings differ.
    """
    for folder in (workdir / "partial").glob(f"{steps_done}-*"):
        path = checkpoints.newest_sound(checkpoints.steps(folder))
        if path is not None:
            before = checkpoints.read_metadata(path)["config"]
            continuation.refuse_another(path, before, config.to_dict(), stages=steps_done + 1, partly=True)


def remove_finished_partials(workdir: Path, *, steps_done: int) -> None:
    """Removes the partial checkpoints of finished stages, which a process leaves that is killed while it removes them.

    Args:
        workdir: of the run.
        steps_done: how many stages are finished.
    """
    for index in range(steps_done):
        for folder in (workdir / "partial").glob(f"{index}-*"):
            checkpoints.delete(folder)


def save(run: Run, stage: StagePlan, after: StageResult, state: TrainState) -> None:
    """Saves a finished stage with all that the later ones need, and removes what was saved on its way."""
    run_record.still_there(run.written)
    run.log.flush()
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
            "memory": memory.to_tree(after.memory),
        },
        files.without_nan(
            {
                "stage": stage.name,
                "stages": after.stages,
                "train_seconds": after.train_seconds,
                "peak_memory_mb": after.peak_memory_mb,
                "step": after.step,
                "calibration": calibration.to_tree(after.calibration),
                "depends_on": exactness.recorded(run.setup.model, after.stages[-1]["metrics"]),
                "data_position": {name: stage.batches_before(stage.total_steps, name) for name in stage.data},
                "config": run.config.to_dict(),
            }
        ),
    )
    checkpoints.delete(_partial(run, stage))


def _partial(run: Run, stage: StagePlan) -> Path:
    return run.workdir / "partial" / f"{stage.index}-{stage.name}"


def resume(run: Run, stage: StagePlan, course: StageClock) -> dict[str, Any]:
    """Goes on from the newest of the stage's partial checkpoints, if there is one, and returns the data that it saw.

    Raises:
        UserError: of the stage's data so little is left that it is past its end.
    """
    path = checkpoints.newest_sound(checkpoints.steps(_partial(run, stage)))
    if path is None:
        return {}
    record = checkpoints.read_metadata(path)
    old_digests = record.get("data", {})
    if record["step"] > stage.total_steps:
        changes = data_changes.changed_streams(old_digests, run.data, "train", stage.settings.streams)
        raise UserError(
            f"{path} is past the end of stage {stage.name}, which now has {stage.total_steps} steps "
            f"({'; '.join(changes.values()) or 'its images or their number have changed'}); put the images back, or "
            f"remove {path.parent} to train the stage from its start"
        )
    course.state = _state(path, record, like=course.state)
    course.step = course.saved = int(course.state.step)
    course.started -= record["seconds"]
    return old_digests


def _state(path: Path, record: Mapping[str, Any], *, like: TrainState) -> TrainState:
    """Reads a state; synaptic intelligence's had another name when its settings were flat."""
    if not legacy.is_flat(record["config"]):
        return checkpoints.load(path, {"state": like})["state"]
    fields = like._asdict()
    keep_state = fields.pop("keep_state")
    restored = checkpoints.load(path, {"state": fields | {"path": keep_state.get("si")}})["state"]
    path_integral = restored.pop("path")
    return TrainState(**restored, keep_state={} if path_integral is None else {"si": path_integral})


def save_partial(run: Run, stage: StagePlan, course: StageClock) -> None:
    """Saves a stage that is not at its end, unless nothing has happened since it was saved."""
    if course.step == course.saved:
        return
    run_record.still_there(run.written)
    run.log.flush()
    record = {"step": course.step, "seconds": course.seconds, "config": files.without_nan(run.config.to_dict())}
    record["data"] = run.data
    folder, keep = _partial(run, stage), run.config.keep_checkpoints
    checkpoints.save_step(folder, course.step, {"state": course.state}, record, keep=keep)
    course.saved = course.step
    devices.give_back_memory()


def newest(run: Run, stage: StagePlan) -> Path | None:
    """Returns the last checkpoint of the run, if there is one."""
    places = checkpoints.steps(_partial(run, stage)) or [
        checkpoint.path for checkpoint in checkpoints.stages(run.workdir)[::-1]
    ]
    return places[0] if places else None
