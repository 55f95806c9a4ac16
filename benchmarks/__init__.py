"""Measurements of speed and memory, run from a checkout by `mtl-jax benchmark`; a PyTorch peer to compare with."""

import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the environment of a process that can import this folder, as an installed package could be.

    Args:
        changes: variables that differ from this process's.
    """
    variables = {**os.environ, **(changes or {})}
    return {**variables, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), variables.get("PYTHONPATH"))))}


def link(path: Path, target: Path) -> None:
    """Makes a link, unless one is there already."""
    if not path.is_symlink():
        path.symlink_to(target.absolute())


def link_weights(folder: Path, data_root: Path) -> None:
    """Gives datasets in a folder's folders the weights that lie next to others."""
    if (data_root.parent / "weights").exists():
        folder.mkdir(parents=True, exist_ok=True)
        link(folder / "weights", data_root.parent / "weights")
