"""Addition of classes to an old task: checks the request of a page and merges it into the task's settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax.config.checks import suggestion
from mtl_jax.config.run_settings import RunSettings
from mtl_jax.errors import UserError
from mtl_jax.tasks import LATER_KINDS, later
from mtl_jax.tasks.segmentation import BACKGROUND
from mtl_jax.workdir.trained import BY_CLASS


def rename_task(page: RunSettings, task: str, known_tasks: Mapping[str, Any], *, location: str) -> RunSettings:
    """Renames the only task of a page to a task of the parent; only its kind and classes are used.

    Args:
        page: streams and a stage of one task, under any name.
        task: name of the parent's task.
        known_tasks: tasks of the parent.
        location: path of the parent, for errors.

    Raises:
        UserError: the parent has no such task, its kind differs, or the page has several tasks.
    """
    if task not in known_tasks:
        raise UserError(f"--task: expected a task of {location}, found {task!r}; {suggestion(task, known_tasks)}")
    names = [name for name in page.tasks if name not in known_tasks] or [name for name in page.tasks if name == task]
    if len(names) != 1:
        raise UserError(
            f"--task {task}: expected a page with one task, whose data is for it, found "
            f"{_listing(page.tasks) or 'none'}"
        )
    task_settings = page.tasks[names[0]]
    if task_settings.get("kind") != known_tasks[task].get("kind"):
        raise UserError(
            f"task {task} of {location} is a {known_tasks[task].get('kind')} task, and the data is for "
            f"{task_settings.get('kind')}; give data of its kind"
        )
    streams = {
        name: dataclasses.replace(
            stream,
            labels={task if name == names[0] else name: label for name, label in stream.labels.items()},
            labelled_classes={
                task if name == names[0] else name: classes for name, classes in stream.labelled_classes.items()
            },
        )
        for name, stream in page.streams.items()
    }
    other_baselines = {name: folder for name, folder in page.contract.baseline_from.items() if name != names[0]}
    return dataclasses.replace(
        page,
        tasks={task: {name: value for name, value in task_settings.items() if name in ("kind", "classes")}},
        streams=streams,
        contract=dataclasses.replace(page.contract, baseline_from=other_baselines),
    )


def names_in_data(task: Mapping[str, Any]) -> dict[str, str]:
    """Returns name in data -> class of a task: its own names, in their order, then those of classes before a renaming.

    Args:
        task: its settings.
    """
    own_names = {name: name for name in task.get("classes") or ()}
    return own_names | {name: class_name for name, class_name in task.get("renamed") or () if name not in own_names}


def with_current_names(page: RunSettings, known_tasks: Mapping[str, Any]) -> RunSettings:
    """Returns a page in which classes that the parent has renamed have their names of now, as datasets are read.

    Args:
        page: with classes of tasks.
        known_tasks: tasks of the parent.
    """
    tasks = dict(page.tasks)
    for name in [name for name in tasks if name in known_tasks and tasks[name].get("classes")]:
        if known_tasks[name].get("renamed"):
            names = names_in_data(known_tasks[name])
            current_names = (names.get(class_name, class_name) for class_name in tasks[name]["classes"])
            tasks[name] = {**tasks[name], "classes": tuple(dict.fromkeys(current_names))}
    return dataclasses.replace(page, tasks=tasks)


def classes_to_add(
    name: str, parent_task: Mapping[str, Any], page_task: Mapping[str, Any], *, location: str
) -> tuple[str, ...]:
    """Returns the classes that a page adds to a task of the parent; none if the classes are equal.

    Args:
        name: name of the task.
        parent_task: its settings in the parent.
        page_task: its settings in the page; its classes are the new ones, or the old ones followed by the new ones.
        location: path of the parent, for errors.

    Raises:
        UserError: the order of old classes differs, a new class exists already, or other settings differ.
    """
    old_classes, new_classes = tuple(parent_task.get("classes") or ()), tuple(page_task.get("classes") or ())
    if new_classes == old_classes:
        return ()
    if new_classes[: len(old_classes)] == old_classes:
        added_classes = new_classes[len(old_classes) :]
    else:
        added_classes = tuple(
            class_name for class_name in new_classes if class_name != BACKGROUND or BACKGROUND not in old_classes
        )
    repeated_names = [class_name for class_name in added_classes if class_name in old_classes]
    if repeated_names and len(repeated_names) == len(old_classes):
        raise UserError(
            f"task {name}: expected the classes of {location} in their order, {_listing(old_classes)}, then what is "
            f"new, found {_listing(new_classes)}; a trained readout keeps its order"
        )
    if repeated_names:
        raise UserError(
            f"class {repeated_names[0]} is in task {name} of {location} already; name new classes alone "
            f"({_listing(set(added_classes) - {*old_classes})}), and use --refine for more data of known ones"
        )
    if len(set(added_classes)) < len(added_classes):
        raise UserError(f"task {name} would get a class twice ({_listing(added_classes)}); name each once")
    _require_same_settings(name, parent_task, page_task, location=location)
    return added_classes


def _listing(names: Any) -> str:
    return ", ".join(sorted(map(str, names)) if isinstance(names, set) else map(str, names)) or "there is none"


def _require_same_settings(
    name: str, parent_task: Mapping[str, Any], page_task: Mapping[str, Any], *, location: str
) -> None:
    for key, value in page_task.items():
        if key not in (*BY_CLASS, *later.SETTINGS) and _as_lists(value) != _as_lists(parent_task.get(key)):
            raise UserError(
                f"task {name} is in {location} already, with other settings ({key} was {parent_task.get(key)!r}, is "
                f"{value!r}); leave the setting out, or give a new task another name"
            )
    if parent_task.get("kind") not in LATER_KINDS:
        raise UserError(
            f"task {name} of {location} is a {parent_task.get('kind')} task, which has no classes to add to"
        )


def _as_lists(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def join(
    config: dict[str, Any],
    page_config: Mapping[str, Any],
    extended_tasks: Mapping[str, tuple[str, ...]],
    stages: Sequence[str],
    *,
    location: str,
) -> None:
    """Adds new classes to the settings of their tasks.

    Args:
        config: settings of the new run, with its streams and stages.
        page_config: settings of the page.
        extended_tasks: task -> its new classes.
        stages: new stages.
        location: path of the parent, for errors.

    Raises:
        UserError: not exactly one stage trains the classes.
    """
    for name, classes in extended_tasks.items():
        training_stages = [stage for stage in stages if name in _labelled(config, stage)]
        if len(training_stages) != 1:
            raise UserError(
                f"task {name} is to get {_listing(classes)}: expected one new stage with a stream that labels it, "
                f"found {_listing(training_stages) or 'none'}"
            )
        task = config["tasks"][name]
        total = len(task["classes"]) + len(classes)
        weights = page_config["tasks"][name].get("class_weights")
        if task.get("class_weights") is not None or weights is not None:
            usual = (*(task.get("class_weights") or (1.0,) * len(task["classes"])), *(1.0,) * len(classes))
            task = {**task, "class_weights": tuple(weights) if weights and len(weights) == total else usual}
        additions = (*(tuple(pair) for pair in task.get("added") or ()), (training_stages[0], len(classes)))
        config["tasks"][name] = {
            **task,
            "classes": (*task["classes"], *classes),
            "added": additions,
        }


def _labelled(config: Mapping[str, Any], stage: str) -> set[str]:
    return {task for stream in config["stages"][stage]["streams"] for task in config["streams"][stream]["labels"]}
