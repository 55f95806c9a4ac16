"""Exact preservation of old tasks: the parameters that a stage must not change, and a check that it does not."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping

from mtl_jax.config.run_settings import RunSettings
from mtl_jax.errors import UserError
from mtl_jax.experiment import Experiment
from mtl_jax.models import dependence
from mtl_jax.models.ownership import owner_of
from mtl_jax.models.patterns import matches
from mtl_jax.models.sharing.wiring import Network
from mtl_jax.training.losses import Objective

# Values of a stage's `old_outputs`; "" says nothing.
EXACT, OTHERS_EXACT, MAY_CHANGE = "exact", "others_exact", "may_change"


def kept_exactly(config: RunSettings, index: int) -> dict[str, str]:
    """Returns the tasks that earlier stages have kept exactly, each with the last stage that did.

    Args:
        config: the resolved configuration.
        index: of a stage in `config.order`.
    """
    stage_by_task: dict[str, str] = {}
    for stage_index, name in enumerate(config.order[:index]):
        wish = config.stages[name].old_outputs
        if wish in (EXACT, OTHERS_EXACT):
            stage_by_task |= dict.fromkeys(config.tasks_of(*config.order[:stage_index]), name)
        if wish == OTHERS_EXACT:
            stage_by_task = {task: stage for task, stage in stage_by_task.items() if task not in config.tasks_of(name)}
        elif wish == MAY_CHANGE:
            stage_by_task = {}
    return stage_by_task


def first_kept(config: RunSettings) -> int:
    """Returns the index of the first stage that says what becomes of old outputs; 0 if none does.

    Args:
        config: the resolved configuration.
    """
    return next((index for index, name in enumerate(config.order) if config.stages[name].old_outputs), 0)


def frozen_patterns(config: RunSettings, setup: Experiment, index: int) -> tuple[str, ...]:
    """Returns patterns of all that a stage must leave as it is, statistics too; none where its old tasks may change.

    Args:
        config: the resolved configuration.
        setup: what it describes.
        index: of the stage in `config.order`.

    Raises:
        UserError: the stage cannot learn what it is to learn without changing an old task.
    """
    name = config.order[index]
    settings, location = config.stages[name], f"config.stages.{name}"
    if settings.old_outputs not in (EXACT, OTHERS_EXACT):
        return ()
    old, new_tasks = config.tasks_of(*config.order[:index]), config.tasks_of(name)
    if settings.old_outputs == OTHERS_EXACT:
        old = tuple(task for task in old if task not in new_tasks)
    elif retrained := [task for task in new_tasks if task in old and not setup.tasks[task].classes_of(name)]:
        raise UserError(
            f"{location} is to keep old tasks exactly, and trains task {retrained[0]}, which is one; leave its label "
            "out of "
            f'the stage\'s streams, or set {location}.old_outputs="{MAY_CHANGE}"'
        )
    if settings.soft_sharing:
        raise UserError(
            f"{location}.soft_sharing: expected 0 where old tasks are kept exactly, whose branches it draws along, "
            "found "
            f"{settings.soft_sharing:g}; set it to 0"
        )
    patterns = patterns_of(setup.model, old, before=config.order[index:])
    free_paths = [path for path in _all(setup.model, new_tasks) if not _is_held(path, patterns)]
    if old and not any(path.startswith("params/") for path in free_paths):
        raise UserError(
            f"{location} leaves task {new_tasks[0]} nothing to train: old tasks depend on all that it reads; give "
            "tasks branches or norms of their own"
        )
    return patterns


def refuse_moving(config: RunSettings, setup: Experiment, index: int, objectives: Iterable[Objective]) -> None:
    """Refuses a stage that would change a task which earlier stages have kept exactly, unless it says that it may.

    Args:
        config: the resolved configuration.
        setup: what it describes.
        index: of the stage in `config.order`.
        objectives: of the stage's phases.

    Raises:
        UserError: names the parameter, or statistic, and the task that needs it.
    """
    name = config.order[index]
    stage_by_task = kept_exactly(config, index)
    if config.stages[name].old_outputs == OTHERS_EXACT:
        stage_by_task = {task: stage for task, stage in stage_by_task.items() if task not in config.tasks_of(name)}
    if config.stages[name].old_outputs == MAY_CHANGE or not stage_by_task:
        return
    location = f"config.stages.{name}"
    by_kind = functools.partial(sorted, key=lambda path: not path.startswith("params/"))  # parameters first
    for objective in objectives:
        for task, stage in stage_by_task.items():
            reads = reads_before(setup.model, task, config.order[config.order.index(stage) :])
            changed_path = next((path for path in by_kind(reads) if _moves(path, objective, tuple(setup.tasks))), None)
            if changed_path is not None:
                raise UserError(
                    f"{location} would change {changed_path}, which task {task} needs as it is (stage {stage} kept it "
                    "exactly); "
                    f'set {location}.old_outputs="{EXACT}" to leave it alone, or "{MAY_CHANGE}" to give that up'
                )


def patterns_of(model: Network, tasks: Iterable[str], *, before: Collection[str] = ()) -> tuple[str, ...]:
    """Returns patterns that cover what the outputs of tasks depend on, and nothing else.

    Args:
        model: the network.
        tasks: of it.
        before: stages that have not been trained: without the classes that they add.
    """
    needed = {path for task in tasks for path in reads_before(model, task, before)}
    free_prefixes = {prefix for path in dependence.paths_of(model) if path not in needed for prefix in _prefixes(path)}
    return tuple(dict.fromkeys(_pattern(path, free_prefixes) for path in sorted(needed)))


def reads_before(model: Network, task: str, stages: Collection[str]) -> tuple[str, ...]:
    """Returns what a task's outputs depend on but for the classes that some stages add.

    Args:
        model: the network.
        task: of it.
        stages: that add classes.
    """
    added_paths = tuple(added_rows(task, stage) for stage in stages)
    return tuple(path for path in dependence.reads_of(model)[task] if not any(rows in path for rows in added_paths))


def added_rows(task: str, stage: str) -> str:
    """Returns the part of a path that all has which a stage adds to a task for its classes."""
    return f"/head/{task}/added_{stage}/"


def _all(model: Network, tasks: Iterable[str]) -> list[str]:
    reads = dependence.reads_of(model)
    return [path for task in tasks for path in reads[task]]


def _place(path: str) -> str:
    """Path of a parameter or statistic as patterns name it: a statistic by its layer, which holds nothing else."""
    collection, _, place = path.partition("/")
    return place if collection == "params" else place.rpartition("/")[0]


def _prefixes(path: str) -> list[str]:
    names = _place(path).split("/")
    return ["/".join(names[: end + 1]) for end in range(len(names))]


def _pattern(path: str, free_prefixes: Collection[str]) -> str:
    """The shortest beginning of a path under which nothing is free."""
    prefixes = _prefixes(path)
    return next((prefix for prefix in prefixes if prefix not in free_prefixes), prefixes[-1])


def _is_held(path: str, patterns: Iterable[str]) -> bool:
    return matches(_place(path), patterns)


def _moves(path: str, objective: Objective, tasks: tuple[str, ...]) -> bool:
    """Whether a step changes a parameter or statistic."""
    place = _place(path)
    owner = owner_of(tuple(place.split("/")), tasks)
    if owner is not None and owner not in objective.tasks:
        return False
    if path.startswith("params/"):
        return not matches(place, objective.frozen)
    by_batch = objective.train_batch_norm
    return bool(by_batch(place) if callable(by_batch) else by_batch)


def recorded(model: Network, tasks: Iterable[str]) -> Mapping[str, list[str]]:
    """Returns {task: patterns of what its outputs depend on}, for a checkpoint.

    Args:
        model: the network.
        tasks: that it has learnt.
    """
    return {task: list(patterns_of(model, (task,))) for task in tasks}
