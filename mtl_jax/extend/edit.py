"""Renaming and removal of classes of a trained task, as a new version with the same weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax import config as config_lib
from mtl_jax import experiment
from mtl_jax.config.checks import suggestion
from mtl_jax.config.run_settings import RunSettings
from mtl_jax.errors import UserError
from mtl_jax.evaluation import contract, evaluate
from mtl_jax.extend import additions, growth
from mtl_jax.runtime import compilation
from mtl_jax.tasks.segmentation import BACKGROUND
from mtl_jax.training.train_loop import train_and_evaluate
from mtl_jax.workdir import checkpoints, lineage, run_record, trained
from mtl_jax.workdir.trained import Trained

# Of a stage's record, by task, and by addition.
FIGURES = ("metrics", "before", "constant", "added", "added_before", "added_constant")


def edit(
    parent: str | Path,
    workdir: str | Path,
    task: str,
    *,
    rename: Mapping[str, str] | None = None,
    remove: Sequence[str] = (),
    command: str = "",
) -> dict[str, Any]:
    """Renames or removes classes of a finished run, in a new work directory; no weight changes.

    A removed class keeps its rows of the readout; it is neither predicted nor evaluated. The task is measured again
    after every stage, over the remaining classes; its baseline is the figure after its own stage.

    Args:
        parent: the run's work directory, or the checkpoint of one of its stages.
        workdir: work directory of the new version.
        task: task of the classes.
        rename: name -> new name.
        remove: names of classes to remove.
        command: command line, for the record in `config.json`.

    Returns:
        The contract, as written to `contract.json`.

    Raises:
        UserError: a task or class is unknown, a name exists already, or the work directory holds a run.
        CheckpointError: the parent is damaged.
    """
    compilation.enable_cache()
    location, workdir = checkpoints.find(Path(parent).expanduser()), Path(workdir).expanduser()
    checkpoints.verify(location)
    additions.refuse_newer(location)
    parent_network = trained.load(location)
    config = config_lib.resolve(change_settings(parent_network, task, dict(rename or {}), tuple(remove)))
    history = lineage.read(workdir)
    if history is not None:
        lineage.require_same_parent(workdir, history, parent_network.path)
    elif (workdir / run_record.RECORD).exists():
        raise UserError(f"{workdir} holds a run already, which grew from no other; name another --workdir")
    else:
        _create_workdir(parent_network, workdir, config, task, dict(rename or {}), tuple(remove))
    return train_and_evaluate(config, workdir, command=command or "mtl_jax.edit")


def change_settings(parent: Trained, task: str, rename: Mapping[str, str], remove: Sequence[str]) -> RunSettings:
    """Returns the settings of the new version.

    Args:
        parent: the finished run.
        task: task of the classes.
        rename: name -> new name.
        remove: names of classes to remove.

    Raises:
        UserError: a task or class is unknown, or a name exists already.
    """
    if task not in parent.names:
        raise UserError(f"--task: expected a task of {parent.path}, found {task!r}; {suggestion(task, parent.names)}")
    section = dict(parent.config.tasks[task])
    removed_before = tuple(section.get("removed") or ())
    classes: tuple[str, ...] = tuple(section.get("classes") or ())
    visible_classes = [name for name in classes if name not in removed_before]
    if not classes:
        raise UserError(f"task {task} of {parent.path} has no classes: it is a {section['kind']} task")
    if BACKGROUND in (*rename, *remove):
        raise UserError(f"task {task}: expected classes of objects, found {BACKGROUND!r}, which means none of them")
    for name in (*rename, *remove):
        if name not in visible_classes:
            raise UserError(
                f"expected classes of task {task} of {parent.path}, found {name!r}; {suggestion(name, visible_classes)}"
            )
    if not rename and not remove:
        raise UserError("expected --rename OLD=NEW or --remove NAME, found neither of them")
    names = [rename.get(name, name) for name in classes]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"task {task} would have two classes {repeated[0]}; choose another name")
    by_dataset = {new_name: before for before, new_name in dict(section.get("renamed") or {}).items()}
    renamed = tuple(
        (by_dataset.get(name, name), rename.get(name, name)) for name in classes if name in {*by_dataset, *rename}
    )
    removed_classes = tuple(rename.get(name, name) for name in (*removed_before, *remove))
    section |= {"classes": tuple(names), "renamed": renamed, "removed": removed_classes}
    limits = parent.config.contract
    if remove:  # another run's figure is of more classes
        limits = dataclasses.replace(limits, baseline_from={**limits.baseline_from, task: ""})
    tasks, order = {**parent.config.tasks, task: section}, parent.config.order[: len(parent.stages)]
    return dataclasses.replace(parent.config, tasks=tasks, order=order, contract=limits)


def _create_workdir(
    parent: Trained, workdir: Path, config: RunSettings, task: str, rename: Mapping[str, str], remove: Sequence[str]
) -> None:
    """Creates the work directory: the stages of the old run under the new settings, then the lineage."""
    setup = experiment.build(config, data_root=parent.setup.data_root)
    history = _measure_stages(parent, setup, task) if remove else None
    with run_record.locked(workdir):
        growth.copy_stages(parent, workdir, parent.variables, config, history=history)
        additions.copy_metrics(parent.path.parent.parent, workdir)
        versions = lineage.of_checkpoint(parent.path) or {"versions": [lineage.first(parent)]}
        changes = {task: {"renamed": dict(rename), "removed": list(remove)}}
        version = lineage.entry(workdir, (), lineage.classes_of(setup.tasks), edited=changes)
        lineage.write(workdir, parent.path, [*versions["versions"], version])


def _measure_stages(parent: Trained, setup: experiment.Experiment, task: str) -> list[dict[str, Any]]:
    """Returns the records of the stages, with figures of the task over the remaining classes.

    Figures of more classes are not comparable with them: those of the untrained network, and of stages without a
    checkpoint, are left out.
    """
    predict, abstract = evaluate.make_predict(setup.model, setup.tasks), experiment.abstract_variables(setup)
    paths, later = growth.stage_paths(parent), [added.stage for added in setup.tasks[task].additions]
    history: list[dict[str, Any]] = []
    for index, record in enumerate(checkpoints.read_metadata(parent.path)["stages"]):
        measured: dict[str, Any] = {}
        if index in paths and task in record["metrics"]:
            variables = checkpoints.load(paths[index], {"variables": abstract})["variables"]
            own = evaluate.measured(setup, predict, variables, (task,))
            finished = [*(past["name"] for past in history), record["name"]]
            added = evaluate.measured_additions(setup, predict, variables, (task,), stages=finished)
            measured = {
                "metrics": {name: metric.compute() for name, metric in own.items()},
                "constant": {name: metric.constant()._asdict() for name, metric in own.items()},
                "added": {name: metric.compute() for name, metric in added.items()},
                "added_constant": {name: metric.constant()._asdict() for name, metric in added.items()},
            }
        names = {task, *(contract.addition(task, stage) for stage in later)}
        figures = {key: _replaced(record[key], names, measured.get(key, {})) for key in FIGURES if key in record}
        history.append({**record, **figures})
    return history


def _replaced(figures: Mapping[str, Any], names: Collection[str], measured: Mapping[str, Any]) -> dict[str, Any]:
    """Returns figures by name in which those of some names are replaced, or left out."""
    return {
        name: measured.get(name, figure) for name, figure in figures.items() if name not in names or name in measured
    }
