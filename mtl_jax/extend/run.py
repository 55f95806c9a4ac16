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
from mtl_jax.extend import additions, growth
from mtl_jax.runtime import compilation
from mtl_jax.runtime.preemption import Preemption
from mtl_jax.training import exactness
from mtl_jax.training.train_loop import train_and_evaluate
from mtl_jax.workdir import checkpoints, lineage, run_record, trained


def extend(
    parent: str | Path,
    workdir: str | Path,
    page: Any,
    *,
    keep: str = exactness.EXACT,
    settings: Mapping[str, Any] | None = None,
    command: str = "",
    preemption: Preemption | None = None,
) -> dict[str, Any]:
    """Adds tasks to a finished run: trains their stages after its own, and judges the contract over all.

    The new work directory begins with the old run's stages, so that whatever reads a work directory reads this one. The
    old one stays as it is. Called again, it goes on where it was.

    Args:
        parent: the old run's work directory, or the checkpoint of one of its stages.
        workdir: of the new run.
        page: "configs/more.py", or a configuration, with the tasks, streams and stages to add, and whatever of the
            network differs from the defaults as the parent has it.
        keep: "exact" leaves every output of every old task bit for bit as it is; "5%" lets shared parts move, as far
            as no old task loses more than so much.
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
    where, workdir = checkpoints.find(Path(parent).expanduser()), Path(workdir).expanduser()
    checkpoints.verify(where)
    additions.refuse_newer(where)
    old = trained.load(where)
    given = page_of(page, settings or {})
    limit = additions.limit_percent(keep)
    config = config_lib.resolve(additions.joined(old, given, limit=limit))
    found = lineage.read(workdir)
    if found is not None:
        lineage.require_same_parent(workdir, found, old.path)
    else:
        _begin(old, workdir, config, keep, exact=limit is None)
    return train_and_evaluate(config, workdir, command=command or "mtl_jax.extend", preemption=preemption)


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


def _begin(old: trained.Trained, workdir: Path, config: RunSettings, keep: str, *, exact: bool) -> None:
    """Makes the new work directory: the old run's stages, then the lineage, which says that they are complete."""
    if (workdir / run_record.RECORD).exists():
        raise UserError(f"{workdir} holds a run already, which grew from no other; name another --workdir")
    parts = experiment.build(config, data_root=old.parts.data_root)
    growth.require_room(old, parts, exact=exact)
    with run_record.locked(workdir):
        growth.copy_stages(old, workdir, growth.fresh_variables(old, parts, config), config)
        additions.copy_metrics(old.path.parent.parent, workdir)
        added = config.order[len(old.stages) :]
        classes = {name: task.classes for name, task in parts.tasks.items()}
        before = lineage.of_checkpoint(old.path) or {"versions": [_first(old)]}
        lineage.write(workdir, old.path, [*before["versions"], lineage.entry(workdir, added, classes, keep=keep)])


def _first(old: trained.Trained) -> dict[str, Any]:
    classes = {name: task.classes for name, task in old.tasks.items()}
    return lineage.entry(old.path.parent.parent, old.stages, classes)
