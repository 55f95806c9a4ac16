"""A new task on a finished run, in a work directory of its own."""

from __future__ import annotations

from collections.abc import Mapping
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
    per_class: int = 0,
    settings: Mapping[str, Any] | None = None,
    command: str = "",
    preemption: Preemption | None = None,
) -> dict[str, Any]:
    """Adds tasks, or classes of tasks, to a finished run: trains their stages after its own, and judges the contract.

    The new work directory begins with the old run's stages, so that whatever reads a work directory reads this one. The
    old one stays as it is. Called again, it resumes where it was.

    Args:
        parent: the old run's work directory, or the checkpoint of one of its stages.
        workdir: of the new run.
        page: "configs/more.py", or a configuration, with the tasks, streams and stages to add, and whatever of the
            network differs from the defaults as the parent has it.
        keep: "exact" leaves every output of every old task bit for bit as it is; "5%" lets shared parts move, as far
            as no old task loses more than so much.
        task: of the old run, which the page's one task stands for: its classes are new ones of this task.
        refine: the page has more data for classes that old tasks know. The new version stays only if no task falls by
            more than `keep`, or contract.max_drop_percent where others are to stay exactly; else its stage is set aside
            in the folder "refused", and the contract says so under "refused".
        per_class: images of each old class, chosen from the old run's training data, that are trained on with those
            of new classes, where classes compete in one softmax.
        settings: values by dotted name, as `mtl_jax.train` takes them.
        command: for the record in `config.json`.
        preemption: asked after every step whether to save and end; None never ends early.

    Returns:
        The contract, as written to `contract.json`.

    Raises:
        UserError: what is to be added does not fit the parent, or the work directory is another run's.
        CheckpointError: the parent is damaged.

    Examples:
        >>> contract = extend("runs/digits", "runs/digits-2", "configs/tags.py")
        >>> print(contract["tasks"]["seg"]["largest_output_change"])
    """
    compilation.enable_cache()
    location, workdir = checkpoints.find(Path(parent).expanduser()), Path(workdir).expanduser()
    checkpoints.verify(location)
    additions.refuse_newer(location)
    old = trained.load(location)
    page_settings = page_of(page, settings or {})
    if task:
        page_settings = new_classes.of_task(page_settings, task, old.config.tasks, location=str(old.path))
    limit = additions.limit_percent(keep)
    config = config_lib.resolve(additions.join(old, page_settings, limit=limit, refine=refine, per_class=per_class))
    history = lineage.read(workdir)
    if history is not None:
        lineage.require_same_parent(workdir, history, old.path)
        if refinement.REFUSED in history:
            return files.contract_of_run(str(workdir))
    else:
        _begin(old, workdir, config, keep, exact=limit is None, per_class=per_class)
    contract = train_and_evaluate(config, workdir, command=command or "mtl_jax.extend", preemption=preemption)
    return _refined(old, workdir, config, contract) if refine else contract


def _refined(old: trained.Trained, workdir: Path, config: RunSettings, contract: dict[str, Any]) -> dict[str, Any]:
    """The contract of a version that has had more data, which stays only if no task has fallen too far."""
    limit, before = config.contract.max_drop_percent, checkpoints.read_metadata(old.path)["stages"][-1]["metrics"]
    words = refinement.fallen(contract, before, limit=limit)
    return refinement.set_aside(workdir, old.path, contract, words, limit=limit) if words else contract


def page_of(page: Any, settings: Mapping[str, Any]) -> RunSettings:
    """Returns a configuration of what is to be added, with some settings changed.

    Args:
        page: a file, or a configuration, which stays as it is.
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


def _begin(old: trained.Trained, workdir: Path, config: RunSettings, keep: str, *, exact: bool, per_class: int) -> None:
    """Makes the new work directory: the old run's stages, then the lineage, which says that they are complete."""
    if (workdir / run_record.RECORD).exists():
        raise UserError(f"{workdir} holds a run already, which grew from no other; name another --workdir")
    setup = experiment.build(config, data_root=old.setup.data_root)
    growth.require_room(old, setup, exact=exact)
    with run_record.locked(workdir):
        extended_tasks = [
            name for name, task in old.tasks.items() if len(setup.tasks[name].classes) > len(task.classes)
        ]
        exemplar_choice = exemplars.choose(config.to_dict(), old, extended_tasks) if per_class else {}
        growth.copy_stages(old, workdir, growth.fresh_variables(old, setup, config), config, exemplars=exemplar_choice)
        additions.copy_metrics(old.path.parent.parent, workdir)
        new_stages = config.order[len(old.stages) :]
        classes = lineage.classes_of(setup.tasks)
        before = lineage.of_checkpoint(old.path) or {"versions": [lineage.first(old)]}
        lineage.write(workdir, old.path, [*before["versions"], lineage.entry(workdir, new_stages, classes, keep=keep)])
