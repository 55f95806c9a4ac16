"""Dependence of task outputs on parameters, read from the computation: which parameters are shared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from mtl_jax.models import multi_task
from mtl_jax.models.patterns import path_of
from mtl_jax.models.sharing.wiring import Network, once_a_network

SHARED, UNREAD = "shared", "unread"  # names of owners besides those of tasks, which no task may have


def params_by_owner(model: Network) -> dict[str, int]:
    """Counts the parameters that several tasks' outputs depend on, and those of one task alone.

    Args:
        model: The network.

    Returns:
        {"shared": count, task: count}, with "unread" where parameters are left that no output depends on.
    """
    shapes, readers = _shapes(model), _readers(model)
    counts = {SHARED: 0, **dict.fromkeys((task.name for task in model.tasks), 0)}
    for path, leaf in jax.tree_util.tree_leaves_with_path({"params": shapes["params"]}):
        tasks = readers[path]
        owner = SHARED if len(tasks) > 1 else tasks[0] if tasks else UNREAD
        counts[owner] = counts.get(owner, 0) + math.prod(leaf.shape)
    return counts


def shared_percent(counts: Mapping[str, int]) -> float:
    """The share of the parameters that two or more tasks' outputs depend on, percent of all.

    Args:
        counts: From `params_by_owner`.
    """
    return 100.0 * counts[SHARED] / sum(counts.values())


def readers_of(model: Network) -> dict[tuple, tuple[str, ...]]:
    """Returns {path of a parameter: the tasks whose outputs depend on it}, without computing any.

    Args:
        model: The network.
    """
    return {path[1:]: tasks for path, tasks in _readers(model).items() if path[0].key == "params"}


@once_a_network
def reads_of(model: Network) -> dict[str, tuple[str, ...]]:
    """Returns {task: what its outputs depend on}, as "params/neck/…" and "batch_stats/neck/…".

    Args:
        model: The network.
    """
    readers = _readers(model)
    return {
        task.name: tuple(path_of(path) for path, tasks in readers.items() if task.name in tasks) for task in model.tasks
    }


@once_a_network
def paths_of(model: Network) -> tuple[str, ...]:
    """Returns the path of every variable, as `reads_of` names them.

    Args:
        model: The network.
    """
    return tuple(path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(_shapes(model)))


def _shapes(model: Network) -> Any:
    return jax.eval_shape(lambda key: multi_task.init_variables(model, key=key), jax.random.key(0))


@once_a_network
def _readers(model: Network) -> dict[tuple, tuple[str, ...]]:
    """As `readers_of`, of all variables: a path begins with the collection's name."""
    image = jax.ShapeDtypeStruct((1, multi_task.INIT_IMAGE_SIZE, multi_task.INIT_IMAGE_SIZE, 3), jnp.float32)
    variables = _shapes(model)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
    readers: dict[tuple, tuple[str, ...]] = dict.fromkeys(paths, ())
    for task in model.tasks:

        def outputs(variables: PyTree, x: Any, name: str = task.name) -> Any:
            return multi_task.eval_raw(model, variables, x, tasks=(name,))[0]

        jaxpr = jax.make_jaxpr(outputs)(variables, image).jaxpr
        needed = _needed(jaxpr)
        for path, variable in zip(paths, jaxpr.invars, strict=False):  # the variables come before the image
            if variable in needed:
                readers[path] += (task.name,)
    return readers


def _needed(jaxpr: Any) -> set[Any]:
    """The variables of a program that its results depend on."""
    needed = {variable for variable in jaxpr.outvars if not hasattr(variable, "val")}  # literals have values
    for equation in reversed(jaxpr.eqns):
        if needed.intersection(equation.outvars):
            needed.update(variable for variable in equation.invars if not hasattr(variable, "val"))
    return needed
