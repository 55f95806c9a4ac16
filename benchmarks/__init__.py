"""Measurements of speed and memory, run from a checkout by `mtl-jax benchmark`; a PyTorch peer to compare with."""

import argparse
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


def flags_of_runs(description: str | None, *, out: str) -> argparse.ArgumentParser:
    """Returns the flags of a benchmark that trains runs over seeds.

    Args:
        description: what it measures.
        out: default folder of the runs.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data_root", type=Path, default=Path("data"))
    return parser


def link(path: Path, target: Path) -> None:
    """Makes a link, unless one is there already."""
    if not path.is_symlink():
        path.symlink_to(target.absolute())


def link_weights(folder: Path, data_root: Path) -> None:
    """Gives datasets in a folder's folders the weights that lie next to others."""
    if (data_root.parent / "weights").exists():
        folder.mkdir(parents=True, exist_ok=True)
        link(folder / "weights", data_root.parent / "weights")
