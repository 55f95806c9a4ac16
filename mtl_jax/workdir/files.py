"""Text and JSON files of a work directory: written whole or not at all, and read with one line for what is wrong."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl_jax.errors import UserError


def without_nan(tree: Any) -> Any:
    """The same tree in JSON's own types: NaN and infinity become None, arrays lists, paths strings."""
    if isinstance(tree, Mapping):
        return {str(name): without_nan(branch) for name, branch in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_nan(branch) for branch in tree]
    if isinstance(tree, Path):
        return str(tree)
    if hasattr(tree, "tolist"):  # NumPy's and JAX's arrays and scalars
        return without_nan(tree.tolist())
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def write_json(path: Path, tree: Any) -> None:
    """Writes strict JSON (null for NaN and infinity); the file is there completely or not at all."""
    replace_text(path, json.dumps(without_nan(tree), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def contract_of_run(workdir: str) -> dict[str, Any]:
    """Reads the contract of the run that a setting names, where "~" is the user's home; empty where there is none.

    Raises:
        UserError: the file holds something else.
    """
    return read_json(Path(workdir).expanduser() / "contract.json") or {}


def read_json(path: Path) -> dict[str, Any] | None:
    """Reads a file that holds one JSON object; None where there is no file.

    Raises:
        UserError: the file holds something else.
    """
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"expected JSON in {path}, found {error}; delete it and train or evaluate again") from error
    if not isinstance(tree, dict):
        raise UserError(f"expected a JSON object in {path}, found {type(tree).__name__}; delete it and try again")
    return tree


def replace_text(path: Path, text: str) -> None:
    """Replaces the text of a file atomically: readers get the old or the new text.

    What is no text, as in file names that are not UTF-8, is written as JSON escapes it.
    """
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(draft, path)
