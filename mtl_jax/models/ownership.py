"""Ownership of parameters: private to one task, or shared."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import PyTree

from mtl_jax.models.layers import branch_name
from mtl_jax.models.patches import patch_name

SHARED = "shared"  # no task may have this name


def split_private(tree: PyTree, tasks: tuple[str, ...]) -> tuple[PyTree, dict[str, PyTree]]:
    """Splits params, or gradients like them, into what tasks share and what is one task's own.

    A task's own are its branch, its slice of the head, and where tasks have their own, its batch norms and patches.

    Returns:
        The shared leaves, and {task: its leaves}, each in their places.
    """
    owned: dict[str | None, dict[tuple[str, ...], Any]] = {owner: {} for owner in (None, *tasks)}
    for path, leaf in _flat(tree).items():
        owned[owner_of(path, tasks)][path] = leaf
    return _nested(owned[None]), {task: _nested(owned[task]) for task in tasks}


def owner_of(path: tuple[str, ...], tasks: tuple[str, ...]) -> str | None:
    """Returns the task whose own a parameter or batch norm is; None if tasks share it."""
    for task in tasks:
        own_norm = any(name == task and above.startswith("norm") for above, name in itertools.pairwise(path))
        own_readout = any(pair == ("head", task) for pair in itertools.pairwise(path))
        if branch_name(task) in path or patch_name(task) in path or own_readout or own_norm:
            return task
    return None


def counterpart(path: tuple[str, ...], task: str, other_task: str) -> tuple[str, ...]:
    """Returns where another task has the same branch, batch norm or patch; a slice of the head has no counterpart."""
    names = {branch_name(task): branch_name(other_task), patch_name(task): patch_name(other_task)}
    renamed = [names.get(name, name) for name in path]
    for position, (above, name) in enumerate(itertools.pairwise(path), start=1):
        if name == task and above.startswith("norm"):
            renamed[position] = other_task
    return tuple(renamed)


def _flat(tree: PyTree) -> dict[tuple[str, ...], Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(entry.key for entry in path): leaf for path, leaf in leaves}


def _nested(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        functools.reduce(lambda branch, name: branch.setdefault(name, {}), path[:-1], tree)[path[-1]] = leaf
    return tree


def join_private(shared: PyTree, private: Mapping[str, PyTree]) -> PyTree:
    """The inverse of `split_private`."""
    flat: dict[tuple[str, ...], Any] = {}
    for subtree in (shared, *private.values()):
        flat |= _flat(subtree)
    return _nested(flat)


def by_owner(tree: PyTree, tasks: tuple[str, ...]) -> dict[str, PyTree]:
    """As `split_private`, in one dict, with the shared leaves under `SHARED`; owners of nothing are left out."""
    shared, private = split_private(tree, tasks)
    return {owner: subtree for owner, subtree in {SHARED: shared, **private}.items() if subtree}
