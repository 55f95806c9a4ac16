"""Extension of a finished run by tasks or classes, in a new work directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mtl_jax import config as config_lib
from mtl_jax import experiment
from mtl_jax.config import overrides
from mtl_jax.config.run_settings import RunSettings
from mtl_jax.errors import UserError
from mtl_jax.extend import additions, exemplars, growth, new_classes, refinement
from mtl_jax.runtime import compilation
from mtl_jax.runtime.preemption import Preemption
from mtl_jax.training import exactness
from mtl_jax.training.train_loop import train_and_evaluate
from mtl_jax.workdir import checkpoints, files, lineage, run_record, trained


def extend(
    parent: str | Path,
    workdir: str | Path,
    page: Any,
    *,
    keep: str = exactness.EXACT,
    task: str = "",
    refine: bool = False,
    per_class: int | None = None,
    settings: Mapping[str, Any] | None = None,
    command: str = "",
    preemption: Preemption | None = None,
) -> dict[str, Any]:
    """Adds tasks, or classes of tasks, to a finished run: trains the new stages and evaluates the contract.

    The new work directory starts with the stages of the old run, so that every command accepts it. The old run is
    unchanged. A second call resumes.

    Args:
        parent: the old run's work directory, or the checkpoint of one of its stages.
        workdir: work directory of the new run.
        page: "configs/more.py", or a configuration, with the tasks, streams and stages to add; its network settings
            are the defaults or the parent's.
        keep: "exact" keeps every output of every old task bit for bit; "5%" lets shared parameters change, as long as
            no old task loses more than this.
        task: task of the old run that gets the classes of the page's only task.
        refine: the page has more data for existing classes. The new version is kept only if no task drops by more than
            `keep`, or contract.max_drop_percent with "exact"; otherwise its stage is moved to the folder "refused",
            and the contract has the reason under "refused".
        per_class: images of each old class, from the old run's training data, that are trained on with the new ones;
            None means 10 where that data is still there. With "exact" these are the images of tasks that get classes
            or more data, but not of tags; where shared parameters may change, of all tasks.
        settings: values by dotted name, as in `mtl_jax.train`.
        command: command line, for the record in `config.json`.
        preemption: checked after every step; None never ends early.

    Returns:
        The contract, as written to `contract.json`.

    Raises:
        UserError: the additions do not fit the parent, or the work directory belongs to another run.
        CheckpointError: the parent is damaged.

    Examples:
        >>> contract = extend("runs/digits", "runs/digits-2", "configs/tags.py")
        >>> print(contract["tasks"]["seg"]["largest_output_change"])
    """
    compilation.enable_cache()
    location, workdir = checkpoints.find(Path(parent).expanduser()), Path(workdir).expanduser()
    checkpoints.verify(location)
    additions.refuse_newer(location)
    parent_network = trained.load(location)
    page_settings = _read_additions(page, settings or {}, task, parent_network)
    limit = additions.limit_percent(keep)
    history = lineage.read(workdir)
    if history is not None:
        lineage.require_same_parent(workdir, history, parent_network.path)
        if refinement.REFUSED in history:
            return files.contract_of_run(str(workdir))
    if per_class is None:
        per_class = _exemplar_count(parent_network, page_settings, history, refine=refine, may_change=limit is not None)
    config = config_lib.resolve(
        additions.join(parent_network, page_settings, limit=limit, refine=refine, per_class=per_class)
    )
    if history is None:
        tasks = exemplars.growing_tasks(parent_network, page_settings, refine=refine)
        _create_workdir(parent_network, workdir, config, keep, tasks, per_class=per_class)
    is_judged = refine and not config.smoke  # which measures few images
    review = partial(_accept_or_reject, parent_network, workdir, config) if is_judged else dict
    return train_and_evaluate(
        config, workdir, command=command or "mtl_jax.extend", preemption=preemption, review=review
    )


def _read_additions(page: Any, settings: Mapping[str, Any], task: str, parent: trained.Trained) -> RunSettings:
    """Returns the settings of a page, its tasks and classes under the names that the old run has."""
    known_tasks, page_settings = parent.config.tasks, read_page(page, settings)
    if task:
        page_settings = new_classes.rename_task(page_settings, task, known_tasks, location=str(parent.path))
    return new_classes.with_current_names(page_settings, known_tasks)


def _exemplar_count(
    parent: trained.Trained, page: RunSettings, history: Mapping[str, Any] | None, *, refine: bool, may_change: bool
) -> int:
    """Returns how many images of each old class are used where nobody says: as many as when the run began."""
    recorded = history["versions"][-1].get("exemplars") if history is not None else None
    if recorded is not None:  # the old data, of which they are stored, may be gone since
        return recorded
    return exemplars.usual_count(parent, page, may_change=may_change, refine=refine)


def _accept_or_reject(
    parent: trained.Trained, workdir: Path, config: RunSettings, contract: dict[str, Any]
) -> dict[str, Any]:
    """Returns the contract of a refined version, which is rejected if a task drops too much."""
    limit, last = config.contract.max_drop_percent, checkpoints.read_metadata(parent.path)["stages"][-1]
    drops = refinement.describe_drops(contract, {**last["metrics"], **last.get("added", {})}, limit=limit)
    return refinement.reject(workdir, parent.path, contract, drops, limit=limit) if drops else contract


def read_page(page: Any, settings: Mapping[str, Any]) -> RunSettings:
    """Returns the configuration of a page, with some settings changed.

    Args:
        page: a file, or a configuration, which is not modified.
        settings: values by dotted name.

    Raises:
        UserError: the page cannot be read, or a setting is unknown.
    """
    changes = [overrides.Override(tuple(name.split(".")), str(value)) for name, value in settings.items()]
    if isinstance(page, str | Path):
        return config_lib.read_settings(overrides.load(str(page), changes))
    if isinstance(page, RunSettings):
        return page
    config = page.copy_and_resolve_references()
    for change in changes:
        overrides.change(config, change)
    return config_lib.read_settings(config)


def _create_workdir(
    parent: trained.Trained,
    workdir: Path,
    config: RunSettings,
    keep: str,
    growing_tasks: Sequence[str],
    *,
    per_class: int,
) -> None:
    """Creates the work directory: the stages of the old run, then the lineage, which marks them as complete."""
    if (workdir / run_record.RECORD).exists():
        raise UserError(f"{workdir} holds a run already, which grew from no other; name another --workdir")
    setup = experiment.build(config, data_root=parent.setup.data_root)
    exact = additions.limit_percent(keep) is None
    growth.require_compatible(parent, setup, exact=exact)
    with run_record.locked(workdir):
        new_stages = config.order[len(parent.stages) :]
        chosen = _exemplars(parent, setup, config, new_stages, growing_tasks, may_change=not exact) if per_class else {}
        growth.copy_stages(parent, workdir, growth.init_variables(parent, setup, config), config, exemplars=chosen)
        additions.copy_metrics(parent.path.parent.parent, workdir)
        classes = lineage.classes_of(setup.tasks)
        history = lineage.of_checkpoint(parent.path) or {"versions": [lineage.first(parent)]}
        entry = lineage.entry(workdir, new_stages, classes, keep=keep, exemplars=per_class)
        lineage.write(workdir, parent.path, [*history["versions"], entry])


def _exemplars(
    parent: trained.Trained,
    setup: experiment.Experiment,
    config: RunSettings,
    new_stages: Sequence[str],
    tasks: Sequence[str],
    *,
    may_change: bool,
) -> dict[str, dict[str, Any]]:
    new_streams = dict.fromkeys(stream for stage in new_stages for stream in config.stages[stage].streams)
    new_sources = {stream: experiment.source(setup, stream, training=True) for stream in new_streams}
    return exemplars.choose(config.to_dict(), parent, tasks, new_sources, may_change=may_change)
