"""Training as one function: a page, a work directory, some settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl_jax.config import overrides
from mtl_jax.config.overrides import Override
from mtl_jax.runtime import compilation
from mtl_jax.training.train_loop import train_and_evaluate


def train(page: Any, workdir: str | Path = "", settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Trains every stage of a configuration, or what is left of it, and judges the contract.

    Args:
        page: "configs/seq.py", with an argument of its `get_config` "configs/seq.py:branched"; or a
            configuration, as `mtl_jax.config.base` makes it, which stays as it is.
        workdir: where the run's files go; a run that is there already is continued. By default runs/<its name>.
        settings: values by dotted name, {"stages.det.epochs": 50}, as `--config.stages.det.epochs=50` sets them.

    Returns:
        The contract, as written to `contract.json`.

    Raises:
        UserError: a setting, a dataset or a work directory that does not fit, or files that cannot be written.
        CheckpointError: a checkpoint that cannot be read or written.

    Examples:
        >>> contract = train("configs/quickstart.py", "runs/digits", {"seed": 1})
        >>> print(contract["passed"], contract["tasks"]["det"]["final"])
    """
    changes = [Override(tuple(name.split(".")), str(value)) for name, value in (settings or {}).items()]
    if isinstance(page, str | Path):
        config = overrides.load(str(page), changes)
    else:
        config = page.copy_and_resolve_references()
        for change in changes:
            overrides.change(config, change)
    compilation.enable_cache()
    page_name = repr(str(page)) if isinstance(page, str | Path) else config.name
    return train_and_evaluate(config, workdir or f"runs/{config.name}", command=f"mtl_jax.train({page_name})")
