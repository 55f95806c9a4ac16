"""Which parameters are one task's own, which are shared, and which stay as they are."""

from __future__ import annotations

import fnmatch
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array, PyTree

from mtl_jax.models.network import branch_name


def split_private(tree: PyTree, tasks: tuple[str, ...]) -> tuple[PyTree, dict[str, PyTree]]:
    """Splits params, or gradients like them, into what tasks share and what is one task's own.

    A task's own are its branch, its slice of the head, and its batch norms where tasks have their own.

    Returns:
        The shared leaves, and {task: its leaves}, each in their places.
    """
    flat = {tuple(entry.key for entry in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    owners = {path: _owner(path, tasks) for path in flat}
    parts = [_nested({path: leaf for path, leaf in flat.items() if owners[path] == owner}) for owner in (None, *tasks)]
    return parts[0], dict(zip(tasks, parts[1:], strict=True))


def _owner(path: tuple[str, ...], tasks: tuple[str, ...]) -> str | None:
    for task in tasks:
        own_norm = any(name == task and above.startswith("norm") for above, name in itertools.pairwise(path))
        if path[0] == branch_name(task) or path[:2] == ("head", task) or own_norm:
            return task
    return None


def _nested(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        functools.reduce(lambda branch, name: branch.setdefault(name, {}), path[:-1], tree)[path[-1]] = leaf
    return tree


def join_private(shared: PyTree, private: Mapping[str, PyTree]) -> PyTree:
    """The inverse of `split_private`."""
    flat: dict[tuple[str, ...], Any] = {}
    for part in (shared, *private.values()):
        flat |= {tuple(entry.key for entry in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(part)}
    return _nested(flat)


def is_frozen(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether a layer or parameter, such as "backbone/block_4/expand/conv", lies at or below one of the patterns."""
    return any(fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}/*") for pattern in patterns)


def paths(params: PyTree) -> list[str]:
    """Returns the path of every parameter, names joined by slashes."""
    return ["/".join(entry.key for entry in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def where_frozen(change: Callable[[Array], Array], params: PyTree, patterns: tuple[str, ...]) -> PyTree:
    """Changes the leaves that lie at or below one of the patterns."""
    leaves, structure = jax.tree.flatten(params)
    changed = [
        change(leaf) if is_frozen(path, patterns) else leaf for path, leaf in zip(paths(params), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, changed)
