"""Growth of a network: old variables are copied into a larger network, new ones are initialised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def require_compatible(parent: Trained, setup: experiment.Experiment, *, exact: bool) -> None:
    """Checks that a network can get new tasks without changing the variables that old tasks depend on.

    Args:
        parent: the trained network.
        setup: experiment of the larger network.
        exact: whether old tasks must not depend on new variables.

    Raises:
        UserError: names a new variable that an old task depends on, or one of another shape.
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
    old_reads, later_stages = dependence.reads_of(parent.setup.model), tuple(setup.stage_streams)[len(parent.stages) :]
    for task in parent.names:
        reads_now = exactness.reads_before(setup.model, task, later_stages)
        new_paths = [path for path in reads_now if path not in old_reads[task]]
        if new_paths:
            raise UserError(
                f"{network_text} cannot keep old tasks exactly: task {task} would read {new_paths[0]}, which is a "
                "new task's; extend it with --keep 5%, or train all tasks from the start"
            )


def grow_variables(variables: PyTree, new_variables: PyTree) -> PyTree:
    """Returns the variables of the larger network, with those of the smaller network copied into them.

    Args:
        variables: variables of the smaller network.
        new_variables: untrained variables of the larger network.
    """
    old_leaves = {path_of(path): leaf for path, leaf in _leaves(variables)}
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: old_leaves.get(path_of(path), np.asarray(leaf)), new_variables
    )


def init_variables(parent: Trained, setup: experiment.Experiment, config: RunSettings) -> PyTree:
    """Returns untrained variables of the larger network, with pretrained features for a new backbone branch.

    Args:
        parent: the trained network.
        setup: experiment of the larger network.
        config: settings of the larger network.

    Raises:
        UserError: the file of features is missing.
    """
    old_paths = {path_of(path) for path, _ in _leaves(parent.variables)}
    added_paths = [
        path_of(path) for path, _ in _leaves(experiment.abstract_variables(setup)) if path_of(path) not in old_paths
    ]
    features = config.pretrained if any("backbone" in path.split("/") for path in added_paths) else ""
    # Another key than the run's: it initialised the old tasks, and would give the new ones equal weights.
    key = jax.random.fold_in(jax.random.key(config.seed), len(parent.config.tasks))
    return jax.device_get(experiment.init_variables(setup, key=key, pretrained_path=features, offline=config.offline))


def copy_stages(
    parent: Trained,
    workdir: Path,
    new_variables: PyTree,
    config: RunSettings,
    *,
    history: Sequence[Mapping[str, Any]] | None = None,
    exemplars: Mapping[str, Any] | None = None,
) -> None:
    """Writes the parent's stages, up to the extended one, as the first stages of the larger network.

    Args:
        parent: the trained network.
        workdir: work directory of the new run.
        new_variables: untrained variables of the larger network.
        config: settings of the larger network.
        history: records of the stages, in place of those that the checkpoints have.
        exemplars: stream -> images that the memory of the last stage gets, in place of those that it has of the stream.

    Raises:
        CheckpointError: a stage cannot be read or written.
    """
    abstract = experiment.abstract_variables(parent.setup)
    for index, path in stage_paths(parent).items():
        restored = checkpoints.load(path, {"variables": abstract, "memory": None})
        record = {**checkpoints.read_metadata(path), "config": config.to_dict(), "train_seconds": 0.0}
        calibrations = parent.calibration if path == parent.path else from_tree(record.get("calibration", {}))
        record["calibration"] = to_tree(_rename_classes(calibrations, parent.config, config))
        if history is not None:
            record["stages"] = list(history[: index + 1])
        grown_memory = _grow_memory(restored["memory"], parent.variables["params"], new_variables["params"])
        if exemplars and path == parent.path:
            grown_memory[Replay.slot] = {**grown_memory.get(Replay.slot, {}), **exemplars}
        trees = {"variables": grow_variables(restored["variables"], new_variables), "memory": grown_memory}
        checkpoints.save(workdir / "checkpoints" / path.name, trees, files.without_nan(record))


def stage_paths(parent: Trained) -> dict[int, Path]:
    """Returns the checkpoints of the network's stages, by index; a single checkpoint without its run has no earlier."""
    paths = {stage.index: stage.path for stage in checkpoints.stages(parent.path.parent.parent)}
    last = len(parent.stages) - 1
    return {**{index: path for index, path in sorted(paths.items()) if index < last}, last: parent.path}


def _rename_classes(
    calibrations: Mapping[str, Calibration], parent_config: RunSettings, config: RunSettings
) -> dict[str, Calibration]:
    """Renames the classes of calibrations; the order of classes is unchanged."""
    renamed = {}
    for task, calibration in calibrations.items():
        new_names = dict(
            zip(*(settings.tasks[task].get("classes") or () for settings in (parent_config, config)), strict=False)
        )
        renamed[task] = calibration._replace(
            thresholds={new_names.get(name, name): threshold for name, threshold in calibration.thresholds.items()}
        )
    return renamed


def _grow_memory(memory: Mapping[str, Any], params: PyTree, new_params: PyTree) -> dict[str, Any]:
    """Returns the memory of old stages, with parameter-shaped trees extended to the new network."""
    paths = [path for path, _ in _leaves(params)]

    def grow(name: str, tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        if tree and [path for path, _ in _leaves(tree)] == paths:
            # New parameters: their initial values, and importance zero.
            return grow_variables(tree, new_params if name == "params" else jax.tree.map(np.zeros_like, new_params))
        return {key: grow(key, branch) for key, branch in tree.items()}

    return grow("", memory)


def _leaves(tree: PyTree) -> list[tuple[tuple, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)
