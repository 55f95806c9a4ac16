"""Merges additions into the configuration of a finished run, and rejects those that do not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import mtl_jax
from mtl_jax.config.checks import suggestion
from mtl_jax.config.model_settings import ModelSettings
from mtl_jax.config.recipes import RETENTION
from mtl_jax.config.run_settings import RunSettings, read_settings
from mtl_jax.config.section import defaults
from mtl_jax.errors import UserError
from mtl_jax.extend import exemplars, new_classes, refinement
from mtl_jax.models import dependence
from mtl_jax.models.ownership import owner_of
from mtl_jax.tasks import later
from mtl_jax.training import exactness
from mtl_jax.workdir import continuation, files, metrics_log, run_record
from mtl_jax.workdir.trained import Trained

PERCENT = re.compile(r"(\d+(?:\.\d+)?) ?%")


def limit_percent(keep: str) -> float | None:
    """Parses the largest drop of an old task in percent; None means that nothing may change.

    Args:
        keep: "exact" or a percentage such as "5%".

    Raises:
        UserError: it is neither.
    """
    match = PERCENT.fullmatch(keep.strip())
    if keep.strip() != exactness.EXACT and (not match or float(match[1]) > 100):
        raise UserError(f'keep: expected "exact", or what an old task may lose, such as "5%", found {keep!r}')
    return float(match[1]) if match else None


def refuse_newer(path: Path) -> None:
    """Rejects a run of a later version of this package, whose settings may be unknown.

    Args:
        path: checkpoint of the run.

    Raises:
        UserError: names both versions.
    """
    record = files.read_json(path.absolute().parent.parent / run_record.RECORD) or {}
    parent_version = record.get("versions", {}).get("mtl_jax", "")
    if _version_numbers(parent_version) > _version_numbers(mtl_jax.__version__):
        raise UserError(
            f"{path} was trained by mtl_jax {parent_version}, this is the older {mtl_jax.__version__}: upgrade it"
        )


def _version_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def join(
    parent: Trained, page: RunSettings, *, limit: float | None, refine: bool = False, per_class: int = 0
) -> RunSettings:
    """Returns the settings of the new run: those of the old run and the additions of a page.

    Args:
        parent: the finished run.
        page: tasks, streams and stages to add; it may repeat those of the old run unchanged.
        limit: largest drop of an old task in percent; None means that nothing may change.
        refine: whether the page has more data for existing classes.
        per_class: replayed images of each old class.

    Raises:
        UserError: the page contradicts the old run, or adds nothing that can be learnt.
    """
    config, page_config = parent.config.to_dict(), page.to_dict()
    config["order"] = config["order"][: len(parent.stages)]  # without stages that are not trained yet
    _require_same_network(parent, config, page_config)
    if refine:
        _require_existing_tasks(parent, config, page_config)
        new_tasks, extended_tasks = list(page_config["tasks"]), {}
    else:
        extended_tasks = _join_tasks(parent, config, page_config)
        new_tasks = [task for task in page_config["tasks"] if task not in parent.names or task in extended_tasks]
        if not new_tasks:
            raise UserError(
                f"expected a task or classes that {parent.path} has not, found none; use --refine for more data of "
                "known classes"
            )
    _join_streams(parent, config, page_config)
    new_stages = _join_stages(parent, config, page_config, new_tasks)
    new_classes.join(config, page_config, extended_tasks, new_stages, location=str(parent.path))
    _apply_page_settings(config, page_config)
    has_exemplars = limit is not None and (bool(per_class) or exemplars.are_stored(parent))
    for name in new_stages:
        stage = config["stages"][name]
        stage |= _keep_settings(
            parent, stage, config["streams"], limit, set(extended_tasks), refine=refine, has_exemplars=has_exemplars
        )
        stage["warm_start"] = stage["warm_start"] or _warm_start(parent, config, stage)
    if per_class:
        exemplars.configure(
            config,
            parent,
            new_tasks if refine else extended_tasks,
            new_stages,
            per_class=per_class,
            may_change=limit is not None,
            refine=refine,
        )
    exemplars.adjust_logits(config, parent, extended_tasks, new_stages, with_exemplars=bool(per_class))
    if limit is not None:
        config["contract"]["max_drop_percent"] = limit
    if limit is not None or refine:
        config["contract"]["baseline_from"] |= _baselines_of(parent)
    return read_settings(config)


def _baselines_of(parent: Trained) -> dict[str, str]:
    """Returns the baselines of the old tasks: the old run, if it is finished."""
    folder = parent.path.absolute().parent.parent
    contract = files.read_json(folder / "contract.json") or {}
    is_finished = [stage["name"] for stage in contract.get("stages", ())] == list(parent.stages)
    return dict.fromkeys(parent.names, str(folder)) if is_finished else {}


def _require_existing_tasks(parent: Trained, config: Mapping[str, Any], page_config: Mapping[str, Any]) -> None:
    """Rejects tasks and classes that the parent does not have."""
    for name, task in page_config["tasks"].items():
        if name not in parent.names:
            raise UserError(
                f"expected tasks of {parent.path}, found {name!r}; {suggestion(name, parent.names)}, or leave "
                "--refine out"
            )
        refinement.require_existing_classes(name, config["tasks"][name], task, location=str(parent.path))


def _require_same_network(parent: Trained, parent_settings: Mapping[str, Any], page_config: Mapping[str, Any]) -> None:
    """Rejects network settings that are neither the parent's nor the defaults."""
    for name, value in page_config["model"].items():
        is_allowed = name in ("branches", "max_params") or value in (
            defaults(ModelSettings)[name],
            parent_settings["model"][name],
        )
        if not is_allowed:
            raise UserError(
                f"model.{name}: expected {parent_settings['model'][name]!r}, as {parent.path} was trained and keeps "
                f"its layers, found {value!r}; leave the setting out, or train all tasks from the start"
            )


def _join_tasks(parent: Trained, config: dict[str, Any], page_config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Adds new tasks to the configuration; returns the new classes of old tasks."""
    extended_tasks = {}
    for name, task in page_config["tasks"].items():
        if name not in config["tasks"]:
            config["tasks"][name] = task
        elif classes := new_classes.classes_to_add(name, config["tasks"][name], task, location=str(parent.path)):
            extended_tasks[name] = classes
        else:
            _require_same_task(parent, name, config["tasks"][name], task)
    config["model"]["branches"] = {**dict(config["model"]["branches"]), **dict(page_config["model"]["branches"])}
    return extended_tasks


def _require_same_task(
    parent: Trained, name: str, parent_settings: Mapping[str, Any], page_config: Mapping[str, Any]
) -> None:
    compared = {**{key: parent_settings[key] for key in later.SETTINGS if key in parent_settings}, **page_config}
    if _as_lists(parent_settings) != _as_lists(compared):
        differences = continuation.differences(_as_lists(parent_settings), _as_lists(compared))
        raise UserError(
            f"task {name} is in {parent.path} already, with other settings ({differences[0]}); give the new task "
            "another name"
        )


def _join_streams(parent: Trained, config: dict[str, Any], page_config: Mapping[str, Any]) -> None:
    for name, stream in page_config["streams"].items():
        if name in config["streams"]:
            if config["streams"][name] != stream:
                raise UserError(
                    f"stream {name} is in {parent.path} already, with other settings; give the new stream another name"
                )
            continue
        if page_config["image_size"] != config["image_size"] and not stream["image_size"]:
            stream = {**stream, "image_size": page_config["image_size"]}
        config["streams"][name] = stream


def _join_stages(
    parent: Trained, config: dict[str, Any], page_config: Mapping[str, Any], new_tasks: Sequence[str]
) -> list[str]:
    """Adds new stages, which have to train the new tasks; returns the names of the stages."""
    new_stages = [name for name in page_config["order"] if name not in config["order"]]
    used_streams = {stream for name in new_stages for stream in page_config["stages"][name]["streams"]}
    for stream in page_config["streams"]:
        if stream in parent.config.streams:
            continue
        if stream not in used_streams:
            raise UserError(
                f"stream {stream} is in no new stage ({', '.join(new_stages) or 'there is none'}); add it to one, or "
                "leave it out"
            )
        if not set(page_config["streams"][stream]["labels"]) & set(new_tasks):
            raise UserError(
                f"stream {stream} labels no new task in a new stage ({', '.join(new_tasks)}); label one, or leave the "
                "stream out"
            )
    new_labels = {task for stream in used_streams for task in config["streams"][stream]["labels"]}
    if idle := [task for task in new_tasks if task not in new_labels]:
        raise UserError(f"task {idle[0]} is new and no new stage labels it; add a stream and a stage for it")
    if not new_stages:
        raise UserError(f"expected a new stage that trains {', '.join(new_tasks)}, found none; add it to the order")
    for name in new_stages:
        if name in config["stages"] and name in parent.stages:
            raise UserError(f"stage {name} is in {parent.path} already; give the new stage another name")
        config["stages"][name] = page_config["stages"][name]
    config["order"] = (*config["order"], *new_stages)
    return new_stages


def _apply_page_settings(config: dict[str, Any], page_config: Mapping[str, Any]) -> None:
    """Applies the page's settings that do not affect finished stages, where they differ from the defaults."""
    usual = defaults(RunSettings)
    for name in (*continuation.NOT_LEARNT_FROM, "seed", "smoke"):
        if name != "contract" and page_config[name] != usual[name]:
            config[name] = page_config[name]
    baselines = {**dict(config["contract"]["baseline_from"]), **dict(page_config["contract"]["baseline_from"])}
    changes = {name: value for name, value in page_config["contract"].items() if value != usual["contract"][name]}
    config["contract"] = {**config["contract"], **changes, "baseline_from": baselines}
    config["model"]["max_params"] = max(config["model"]["max_params"], page_config["model"]["max_params"])


def _keep_settings(
    parent: Trained,
    stage: Mapping[str, Any],
    labels: Mapping[str, Any],
    limit: float | None,
    extended_tasks: Set[str],
    *,
    refine: bool,
    has_exemplars: bool,
) -> dict[str, Any]:
    """Returns the settings of a new stage that keep old tasks: exact outputs, or the default continual methods."""
    if limit is None:
        return {"old_outputs": exactness.OTHERS_EXACT if refine else exactness.EXACT}
    stage_labels = {task for stream in stage["streams"] for task in labels[stream]["labels"]}
    # Where it only trains old tasks on more data, nothing is distilled, and exemplars alone retain them.
    is_distilled = bool(set(parent.names) - stage_labels or stage_labels & extended_tasks)
    usual = {
        name: dict(method_settings)
        for name, method_settings in RETENTION.items()
        if (has_exemplars or name != "replay") and (is_distilled or name != "lwf")
    }
    if any(parent.tasks[name].kind in exemplars.KINDS for name in stage_labels & extended_tasks):
        usual.pop("replay", None)  # whose settings `exemplars.configure` has
    norm_settings = {"train_batch_norm": "new_levels"} if stage["train_batch_norm"] == "everywhere" else {}
    return {"old_outputs": exactness.MAY_CHANGE, "keep": stage["keep"] or usual, **norm_settings}


def _warm_start(parent: Trained, config: Mapping[str, Any], stage: Mapping[str, Any]) -> str:
    """Returns the old task whose branch, norms and patches initialise a new one: of its kind, or the latest."""
    labelled = {task for stream in stage["streams"] for task in config["streams"][stream]["labels"]}
    new_labels = labelled - set(parent.names)
    if not new_labels:  # classes of old tasks, which have them already
        return ""
    kinds = {config["tasks"][task]["kind"] for task in new_labels}
    variable_paths = [
        path.split("/")[1:] for path in dependence.paths_of(parent.setup.model) if path.startswith("params/")
    ]
    owners = {owner_of(tuple(path), parent.names) for path in variable_paths if path[-3:-2] != ["head"]}
    candidates = [task for task in parent.names if task in owners]
    return next(
        (task for task in candidates if config["tasks"][task]["kind"] in kinds), candidates[-1] if candidates else ""
    )


def copy_metrics(parent_workdir: Path, workdir: Path) -> None:
    """Copies the metrics log of the old run, which the new run continues.

    Args:
        parent_workdir: work directory of the old run.
        workdir: work directory of the new run.
    """
    log = parent_workdir / metrics_log.FILE_NAME
    if log.is_file():
        files.replace_text(workdir / metrics_log.FILE_NAME, log.read_text(encoding="utf-8"))


def _as_lists(value: Any) -> Any:
    return files.without_nan(value)
