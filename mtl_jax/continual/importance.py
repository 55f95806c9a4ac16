"""Losses and outputs of single examples, from which the importance of parameters is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from mtl_jax.errors import UserError
from mtl_jax.models import multi_task
from mtl_jax.tasks.base import Task

OutputFunction = Callable[[PyTree, Mapping[str, Any], tuple[str, ...]], dict[str, Array]]


def forward_of_examples(model: Any, batch_stats: PyTree) -> OutputFunction:
    """Returns `(params, example, tasks) -> {task: raw outputs f32[1, ...]}`, with running statistics."""

    def forward(params: PyTree, example: Mapping[str, Any], tasks: tuple[str, ...]) -> dict[str, Array]:
        variables = {"params": params, "batch_stats": batch_stats}
        return multi_task.eval_raw(model, variables, example["image"][None], tasks=tasks)[0]

    return forward


def outputs(forward: OutputFunction, tasks: Mapping[str, Task]) -> Callable[..., Float[Array, " outputs"]]:
    """Returns `(params, example) -> what the head emits for the tasks`, in one vector."""

    def function(params: PyTree, example: Mapping[str, Any]) -> Float[Array, " outputs"]:
        raw = forward(params, example, tuple(tasks))
        return jnp.concatenate([raw[name].ravel() for name in tasks])

    return function


def labelled_loss(forward: OutputFunction, tasks: Mapping[str, Task]) -> Callable[..., Float[Array, ""]]:
    """Returns `(params, example) -> loss` towards the example's labels."""

    def function(params: PyTree, example: Mapping[str, Any]) -> Float[Array, ""]:
        raw = forward(params, example, tuple(tasks))
        labels = jax.tree.map(lambda leaf: leaf[None], example["labels"])
        size = _size(example)
        return jnp.stack([task.loss(raw[name], labels[name], size)[0] for name, task in tasks.items()]).sum()

    return function


def sampled_loss(forward: OutputFunction, tasks: Mapping[str, Task]) -> Callable[..., Float[Array, ""]]:
    """Returns `(params, example, key) -> loss` towards labels drawn from the network's own outputs."""

    def function(params: PyTree, example: Mapping[str, Any], key: Array) -> Float[Array, ""]:
        raw = forward(params, example, tuple(tasks))
        keys = jax.random.split(key, len(tasks))
        keyed_tasks = zip(tasks.items(), keys, strict=True)
        return jnp.stack([task.sampled_loss(raw[name], _size(example), key) for (name, task), key in keyed_tasks]).sum()

    return function


def log_probabilities(forward: OutputFunction, task: Task) -> Callable[..., Float[Array, " outcomes"]]:
    """Returns `(params, example) -> log-probability of every outcome`.

    Raises:
        UserError: the task's outcomes are too many to list.
    """
    reader_of_task = reader(task)

    def function(params: PyTree, example: Mapping[str, Any]) -> Float[Array, " outcomes"]:
        return reader_of_task(forward(params, example, (task.name,))[task.name])[0]

    return function


def reader(task: Task) -> Callable[[Array], Array]:
    """Returns `(raw) -> log-probability of every outcome` of a task.

    Raises:
        UserError: the task's outcomes are too many to list.
    """
    if task.log_probabilities is None:
        raise UserError(
            f'keep.ewc.estimator="exact" needs a task whose outcomes can be listed, and {task.name} ({task.kind}) is '
            'none; use "sampled", which estimates the same'
        )
    return task.log_probabilities


def _size(example: Mapping[str, Any]) -> tuple[int, int]:
    return example["image"].shape[0], example["image"].shape[1]
