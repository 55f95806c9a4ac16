"""A trained network as the first stages of a larger one: every old variable in its place, the others fresh."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from mtl_jax import experiment
from mtl_jax.config.run_settings import RunSettings
from mtl_jax.continual.replay import Replay
from mtl_jax.errors import UserError
from mtl_jax.models import dependence
from mtl_jax.models.patterns import path_of
from mtl_jax.tasks.calibration import Calibration, from_tree, to_tree
from mtl_jax.training import exactness
from mtl_jax.workdir import checkpoints, files
from mtl_jax.workdir.trained import Trained


def require_room(parent: Trained, setup: experiment.Experiment, *, exact: bool) -> None:
    """Checks that a network can take in new tasks and leave the old ones what they read.

    Args:
        parent: the trained network.
        setup: of the larger one.
        exact: whether old tasks must read nothing that is new.

    Raises:
        UserError: names what an old task would read, or what has another shape.
    """
    network_text = f"the network of {parent.path} (model.sharing={parent.config.model.sharing!r})"
    shapes = {path_of(path): leaf.shape for path, leaf in _leaves(experiment.abstract_variables(setup))}
    for path, leaf in _leaves(parent.variables):
        if shapes.get(path_of(path)) != leaf.shape:
            raise UserError(
                f"{network_text} has no room for a further task: {path_of(path)}, which old tasks read, would have "
                f"the shape {shapes.get(path_of(path))} in place of {leaf.shape}; train all tasks from the start"
            )
    if not exact:
        return
    before, later_stages = dependence.reads_of(parent.setup.model), tuple(setup.stage_streams)[len(parent.stages) :]
    for task in parent.names:
        reads_now = exactness.reads_before(setup.model, task, later_stages)
        new_paths = [path for path in reads_now if path not in before[task]]
        if new_paths:
            raise UserError(
                f"{network_text} cannot keep old tasks exactly: task {task} would read {new_paths[0]}, which is a "
                "new task's; extend it with --keep 5%, or train all tasks from the start"
            )


def grow_variables(variables: PyTree, new_variables: PyTree) -> PyTree:
    """Returns variables of a larger network, with those of the smaller one in their places.

    Args:
        variables: of the smaller network.
        new_variables: of the larger one, untrained.
    """
    old = {path_of(path): leaf for path, leaf in _leaves(variables)}
    return jax.tree_util.tree_map_with_path(lambda path, leaf: old.get(path_of(path), np.asarray(leaf)), new_variables)


def fresh_variables(parent: Trained, setup: experiment.Experiment, config: RunSettings) -> PyTree:
    """Returns untrained variables of the larger network, with published features where a new part has such.

    Args:
        parent: the trained network.
        setup: of the larger one.
        config: of the larger one.

    Raises:
        UserError: the file of features is gone.
    """
    old = {path_of(path) for path, _ in _leaves(parent.variables)}
    added_paths = [
        path_of(path) for path, _ in _leaves(experiment.abstract_variables(setup)) if path_of(path) not in old
    ]
    features = config.pretrained if any("backbone" in path.split("/") for path in added_paths) else ""
    # Not the run's own key, from which the old tasks' parts were drawn: theirs and the new ones' would be alike.
    key = jax.random.fold_in(jax.random.key(config.seed), len(parent.config.tasks))
    return jax.device_get(experiment.init_variables(setup, key=key, pretrained_path=features, offline=config.offline))


def copy_stages(
    parent: Trained,
    workdir: Path,
    new_variables: PyTree,
    config: RunSettings,
    *,
    figures: Mapping[str, Mapping[str, float]] | None = None,
    exemplars: Mapping[str, Any] | None = None,
) -> None:
    """Writes the parent's stages, up to the one that is extended, as the first of the larger network's.

    Args:
        parent: the trained network.
        workdir: of the new run.
        new_variables: untrained variables of the larger network.
        config: of the larger network.
        figures: task -> those that stand for what the last stage measured.
        exemplars: stream -> images that the last stage is to leave, in addition to what it left.

    Raises:
        CheckpointError: a stage cannot be read, or not be written.
    """
    abstract = experiment.abstract_variables(parent.setup)
    last = checkpoints.read_metadata(parent.path)["stages"]
    paths_by_index = {stage.index: stage.path for stage in checkpoints.stages(parent.path.parent.parent)}
    for index in range(len(last)):
        path = parent.path if index == len(last) - 1 else paths_by_index.get(index)
        if path is None:  # a checkpoint by itself
            continue
        restored = checkpoints.load(path, {"variables": abstract, "memory": None})
        record = {**checkpoints.read_metadata(path), "config": config.to_dict(), "train_seconds": 0.0}
        chosen = parent.calibration if path == parent.path else from_tree(record.get("calibration", {}))
        record["calibration"] = to_tree(_under_new_names(chosen, parent.config, config))
        if figures and path == parent.path:
            *before, stage = record["stages"]
            record["stages"] = [*before, {**stage, "metrics": {**stage["metrics"], **figures}}]
        grown_memory = _grown_memory(restored["memory"], parent.variables["params"], new_variables["params"])
        if exemplars and path == parent.path:
            grown_memory[Replay.slot] = {**exemplars, **dict(grown_memory.get(Replay.slot, {}))}
        trees = {"variables": grow_variables(restored["variables"], new_variables), "memory": grown_memory}
        checkpoints.save(workdir / "checkpoints" / path.name, trees, files.without_nan(record))


def _under_new_names(
    chosen: Mapping[str, Calibration], before: RunSettings, config: RunSettings
) -> dict[str, Calibration]:
    """Calibrations under the present names of classes; classes keep their places."""
    renamed = {}
    for task, calibration in chosen.items():
        reads_now = dict(
            zip(*(settings.tasks[task].get("classes") or () for settings in (before, config)), strict=False)
        )
        renamed[task] = calibration._replace(
            thresholds={reads_now.get(name, name): threshold for name, threshold in calibration.thresholds.items()}
        )
    return renamed


def _grown_memory(memory: Mapping[str, Any], params: PyTree, new_params: PyTree) -> dict[str, Any]:
    """The memory of old stages, in which trees like the parameters become as large as those of the new network."""
    paths = [path for path, _ in _leaves(params)]

    def enlarged(name: str, tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        if tree and [path for path, _ in _leaves(tree)] == paths:
            # New parameters lie where they begin, and matter to no old task.
            return grow_variables(tree, new_params if name == "params" else jax.tree.map(np.zeros_like, new_params))
        return {below: enlarged(below, branch) for below, branch in tree.items()}

    return enlarged("", memory)


def _leaves(tree: PyTree) -> list[tuple[tuple, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)
