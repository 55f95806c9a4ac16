"""A trained network from a checkpoint: configuration, tasks and weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from mtl_jax import config as config_lib
from mtl_jax import experiment
from mtl_jax.config.run_settings import RunSettings
from mtl_jax.data.sources import registry
from mtl_jax.errors import UserError
from mtl_jax.models.patterns import path_of
from mtl_jax.tasks import calibration
from mtl_jax.tasks.base import Task
from mtl_jax.tasks.calibration import Calibration, calibrated
from mtl_jax.workdir import checkpoints
from mtl_jax.workdir.files import read_json

CALIBRATION = "calibration.json"  # next to a checkpoint's files, where it was calibrated after its training

BY_CLASS = ("classes", "class_weights")  # settings of a task that have a value for each class


class Trained(NamedTuple):
    """One stage's network."""

    path: Path  # of the checkpoint
    stage: str
    config: RunSettings  # as it was trained with; what has come since has its default
    setup: experiment.Experiment
    names: tuple[str, ...]  # of the requested tasks
    variables: PyTree
    data: Mapping[str, Any] = MappingProxyType({})  # stream -> split -> `data_record.CHECKPOINT_FIELDS`
    stages: tuple[str, ...] = ()  # names of the finished ones, in their order
    calibration: Mapping[str, Calibration] = MappingProxyType({})  # task -> temperature and thresholds, where chosen

    @property
    def tasks(self) -> dict[str, Task]:
        """The requested tasks, with their calibrated temperatures and thresholds."""
        return {name: calibrated(self.setup.tasks[name], self.calibration.get(name)) for name in self.names}


def load(weights: str | Path, *, tasks: str = "all", data_root: str | Path | None = None) -> Trained:
    """Reads a checkpoint.

    Args:
        weights: a work directory (its last stage) or one stage's checkpoint.
        tasks: "all" (that the stage had learnt), or names separated by commas.
        data_root: folder of datasets, for those who want to measure the network; None for the one that the run
            recorded, or where that is not there, $MTL_JAX_DATA, or else ./data.

    Raises:
        UserError: an unknown task.
        CheckpointError: no checkpoint at `weights`.
    """
    path = checkpoints.find(Path(weights).expanduser())
    record = checkpoints.read_metadata(path)
    data = {stream: splits for stage in record["stages"] for stream, splits in stage.get("data", {}).items()}
    config = as_scaled(config_lib.read_settings(config_lib.completed(record["config"])), data)
    full_setup = experiment.build(config, data_root=Path(data_root) if data_root else _recorded_root(config))
    names = _names(tasks, learnt_tasks=tuple(record["stages"][-1]["metrics"]))
    variables = checkpoints.load(path, {"variables": experiment.abstract_variables(full_setup)})["variables"]
    stages = tuple(stage["name"] for stage in record["stages"])
    config = without_later_classes(config, stages)
    setup = experiment.build(config, data_root=full_setup.data_root)
    variables = select_leaves(variables, experiment.abstract_variables(setup))
    selected = calibration.from_tree(read_json(path / CALIBRATION) or record.get("calibration", {}))
    return Trained(path, record["stage"], config, setup, names, variables, data, stages, selected)


def without_later_classes(config: RunSettings, stages: Collection[str]) -> RunSettings:
    """Returns settings in which tasks have only those classes that were there first, or that some stages have added.

    Args:
        config: of a run.
        stages: that are finished.
    """
    tasks, order = {}, config.order
    for name, task in config.tasks.items():
        later_classes = [(stage, count) for stage, count in task.get("added") or () if stage not in stages]
        tasks[name] = task if not later_classes else _shortened(task, stages, sum(count for _, count in later_classes))
        order = tuple(stage for stage in order if stage not in dict(later_classes))
    return dataclasses.replace(config, tasks=tasks, order=order)


def _shortened(task: Mapping[str, Any], stages: Collection[str], count: int) -> dict[str, Any]:
    fewer = {name: tuple(value[:-count]) for name, value in task.items() if name in BY_CLASS and value is not None}
    return {
        **task,
        **fewer,
        "added": tuple(pair for pair in task["added"] if pair[0] in stages),
        "renamed": tuple(pair for pair in task.get("renamed", ()) if pair[1] in fewer["classes"]),
        "removed": tuple(name for name in task.get("removed", ()) if name in fewer["classes"]),
    }


def select_leaves(variables: PyTree, like: PyTree) -> PyTree:
    """Returns those of the variables that a smaller network has.

    Args:
        variables: of the larger network.
        like: those of the smaller one, or their shapes.
    """
    leaves_by_path = {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves_by_path[path_of(path)], like)


def computing_in(network: Trained, dtype: str) -> Trained:
    """Returns the same network, whose weights are float32 in any case, with `model.compute_dtype` of another kind."""
    model = dataclasses.replace(network.config.model, compute_dtype=dtype)
    config = dataclasses.replace(network.config, model=model)
    return network._replace(config=config, setup=experiment.build(config, data_root=network.setup.data_root))


def as_scaled(config: RunSettings, data: Mapping[str, Any]) -> RunSettings:
    """The configuration with the bits of greyscale images that the stages saw, whatever files are there today."""
    streams = dict(config.streams)
    for name, splits in data.items():
        bits = splits.get("train", {}).get("grey_bits")
        if bits and name in streams and "grey_bits" in registry.options_of(streams[name].source):
            options = {**streams[name].options, "grey_bits": bits}
            streams[name] = dataclasses.replace(streams[name], options=options)
    return dataclasses.replace(config, streams=streams)


def grey_bits(network: Trained) -> int | None:
    """Returns by how many bits the greyscale images of 16-bit files were scaled in training; None where none were."""
    streams = [network.setup.streams[name] for name in network.setup.used_streams]
    return max((bits for stream in streams if (bits := stream.options.get("grey_bits"))), default=None)


def _recorded_root(config: RunSettings) -> Path:
    exists = bool(config.data_root) and Path(config.data_root).expanduser().is_dir()
    return config_lib.data_root(config if exists else dataclasses.replace(config, data_root=""))


def _names(tasks: str, *, learnt_tasks: tuple[str, ...]) -> tuple[str, ...]:
    if tasks == "all":
        return learnt_tasks
    names = tuple(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    unknown = [name for name in names if name not in learnt_tasks]
    if unknown or not names:
        raise UserError(
            f"--tasks: expected some of {', '.join(learnt_tasks)}, which this checkpoint has learnt, or all, found "
            f"{', '.join(unknown) or 'nothing'}; separate them by commas"
        )
    return names
