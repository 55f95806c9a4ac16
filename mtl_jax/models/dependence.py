"""Whose outputs depend on which parameters: what a network really shares, read from its computation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from mtl_jax.models import multi_task
from mtl_jax.models.sharing.wiring import Network

SHARED, UNREAD = "shared", "unread"  # names of owners beside those of tasks, which no task may have


def params_by_owner(model: Network) -> dict[str, int]:
    """Counts the parameters that several tasks' outputs depend on, and those of one task alone.

    Args:
        model: The network.

    Returns:
        {"shared": count, task: count}, with "unread" where parameters are left that no output depends on.
    """
    shapes: Any = jax.eval_shape(lambda key: multi_task.init_variables(model, key=key), jax.random.key(0))
    readers = readers_of(model, shapes)
    counts = {SHARED: 0, **dict.fromkeys((task.name for task in model.tasks), 0)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes["params"]):
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


def readers_of(model: Network, variables: PyTree) -> dict[tuple, tuple[str, ...]]:
    """Returns {path of a parameter: the tasks whose outputs depend on it}, without computing any.

    Args:
        model: The network.
        variables: {"params", "batch_stats"}, or their shapes.
    """
    image = jax.ShapeDtypeStruct((1, multi_task.INIT_IMAGE_SIZE, multi_task.INIT_IMAGE_SIZE, 3), jnp.float32)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])]
    found: dict[tuple, tuple[str, ...]] = dict.fromkeys(paths, ())
    for task in model.tasks:

        def outputs(params: PyTree, others: PyTree, x: Any, name: str = task.name) -> Any:
            return multi_task.eval_raw(model, {**others, "params": params}, x, tasks=(name,))[0]

        others = {name: tree for name, tree in variables.items() if name != "params"}
        jaxpr = jax.make_jaxpr(outputs)(variables["params"], others, image).jaxpr
        needed = _needed(jaxpr)
        for path, variable in zip(paths, jaxpr.invars, strict=False):  # the parameters come first
            if variable in needed:
                found[path] += (task.name,)
    return found


def _needed(jaxpr: Any) -> set[Any]:
    """The variables of a program that its results depend on."""
    needed = {variable for variable in jaxpr.outvars if not hasattr(variable, "val")}  # literals have values
    for equation in reversed(jaxpr.eqns):
        if needed.intersection(equation.outvars):
            needed.update(variable for variable in equation.invars if not hasattr(variable, "val"))
    return needed
