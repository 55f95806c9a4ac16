"""Treatment of tasks that a batch does not label: three ways to one result (`update` of a stage)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from jaxtyping import Array, Float

from mtl_jax.models.layers import ByBatch
from mtl_jax.models.ownership import owner_of
from mtl_jax.tasks.base import Task


class Rule(NamedTuple):
    """How a batch without its labels passes a task."""

    computes: bool  # the task's outputs, and the loss that is left without a label, which is 0
    weight: float  # of that loss


# In each, the parameters, statistics and optimizer state that are the task's own stay as they are, and the others move
# as if it were not there: the results are equal, to rounding, and "forward" takes the least time.
UPDATES = {
    "forward": Rule(computes=False, weight=0.0),  # the task is not computed
    "mask": Rule(computes=True, weight=1.0),  # it is computed, and its missing labels mask its loss
    "weight": Rule(computes=True, weight=0.0),  # it is computed, and its loss has the weight 0
}


def losses(
    tasks: Mapping[str, Task],
    names: tuple[str, ...],
    raw: Mapping[str, Array],
    image_size: tuple[int, int],
    *,
    rule: Rule,
) -> Iterator[Float[Array, ""]]:
    """Yields the weighted loss of every task that is computed without labels: 0, with a gradient of 0.

    Args:
        tasks: of the network.
        names: of those without labels.
        raw: what the head emits, by task.
        image_size: height and width, px.
        rule: of `UPDATES`.
    """
    for name in names:
        empty_labels = tasks[name].no_labels(raw[name].shape[0], image_size)
        yield rule.weight * tasks[name].loss(raw[name], empty_labels, image_size)[0]


def sparing(train_batch_norm: ByBatch, names: tuple[str, ...]) -> ByBatch:
    """Returns which batch norms train, without those that are some tasks' own.

    Args:
        train_batch_norm: those that train otherwise.
        names: of the tasks.
    """
    if not names:
        return train_batch_norm

    def by_batch(path: str) -> bool:
        by_batch_setting = train_batch_norm(path) if callable(train_batch_norm) else train_batch_norm
        return by_batch_setting and owner_of(tuple(path.split("/")), names) is None

    return by_batch
