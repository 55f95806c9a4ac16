"""Consolidation: a quadratic penalty, weighted by importance, holds parameters near their earlier values."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from mtl_jax.continual.method import (
    Finished,
    Keep,
    Memory,
    Method,
    StageView,
    Starting,
    described,
    later,
    setting,
)
from mtl_jax.errors import UserError

# Trees of the parameters' structure and shapes, in one call all the same.
Tree = PyTree[Float[Array | np.ndarray, "?*shape"], "Params"]


class Anchor(NamedTuple):
    """Memory of consolidation: former parameters, and their importance."""

    params: PyTree
    importance: PyTree  # float32, >= 0


@dataclasses.dataclass(frozen=True)
class Consolidation(Method):
    """Base of the consolidation methods, which differ in how they measure a parameter's importance for a stage.

    They hold parameters by the same anchors, so a stage names one of them; a stage that names none is measured as the
    first later stage with a strength asks.
    """

    slot: ClassVar[str] = "anchors"
    nothing: ClassVar[tuple[Anchor, ...]] = ()

    strength: float = setting(0.0, "with which this stage holds what older ones have left; 0 only leaves something")
    mode: str = setting("online", "an anchor for all old stages, or one for each", choices=("online", "separate"))
    decay: float = setting(1.0, "of the older stages' importance, online", most=1.0)

    def check_keep(self, location: str, keep: Keep, tasks: Iterable[str]) -> None:
        del tasks
        other_methods = [
            name for name, method in keep.items() if isinstance(method, Consolidation) and method is not self
        ]
        if other_methods:
            raise UserError(
                f"{location} is combined with {', '.join(other_methods)}; name one of them: they share anchors"
            )

    @classmethod
    def in_stage(cls, keeps: Sequence[Keep], index: int, name: str) -> Method | None:
        del name
        configured = [method for method in keeps[index].values() if isinstance(method, Consolidation)]
        later_methods = [method for method in later(keeps, index, Consolidation) if method.strength]
        methods = configured or [dataclasses.replace(method, strength=0.0) for method in later_methods[:1]]
        return methods[0] if methods and type(methods[0]) is cls else None

    def refuse(self, stage: StageView, starting: Starting) -> None:
        if self.strength and not starting.tasks.old:
            name = type(self).__name__.lower()
            raise UserError(
                f"{stage.location}.keep.{name}.strength: expected 0 where no stage before has left anything to hold, "
                f"found {self.strength:g}; leave it to a later stage"
            )

    def before(self, starting: Starting) -> PyTree | None:
        return starting.memory[self.slot] if self.strength and starting.memory[self.slot] else None

    def penalty(self, params: PyTree, stage_memory: PyTree | None) -> Float[Array, ""] | None:
        if not stage_memory:
            return None
        anchors: tuple[Anchor, ...] = stage_memory
        return jnp.stack([penalty(params, anchor.params, anchor.importance, self.strength) for anchor in anchors]).sum()

    def leaves(self, keeps: Sequence[Keep], index: int) -> tuple[str, ...]:
        if not any(method.strength for method in later(keeps, index, Consolidation)):
            return ()
        description = described(type(self).__name__.lower(), dataclasses.replace(self, strength=0.0))
        return (f"importance of parameters by {description} (a strength of a later stage)",)

    def after(self, stage: StageView, finished: Finished, memory: Memory) -> Memory:
        if not self.leaves(stage.keeps, stage.index):
            return memory
        new_importance = self.importance(stage, finished)
        anchors = consolidate(
            memory[self.slot], finished.end["params"], new_importance, mode=self.mode, decay=self.decay
        )
        return {**memory, self.slot: jax.device_get(anchors)}

    def importance(self, stage: StageView, finished: Finished) -> PyTree:
        """Returns each parameter's importance for a stage, a pytree like its parameters."""
        raise NotImplementedError

    @staticmethod
    def to_tree(anchors: tuple[Anchor, ...]) -> Mapping[str, Any]:
        return {str(number): anchor._asdict() for number, anchor in enumerate(anchors)}

    @staticmethod
    def from_tree(tree: Mapping[str, Any]) -> tuple[Anchor, ...]:
        return tuple(Anchor(**anchor) for _, anchor in sorted(tree.items()))


def mean_over_examples(
    importance_fn: Callable[..., Any], params: Tree, batches: Iterable[Any], *, key: PRNGKeyArray | None = None
) -> Tree:
    """The mean of a parameter importance over examples, taken one at a time.

    Args:
        importance_fn: `(params, example, key, index) -> pytree like params` in float32; `index` counts the examples.
        params: passed on.
        batches: pytrees of arrays with a leading batch axis; they may differ in size.
        key: passed on.

    Returns:
        A pytree like `params`, in float32.

    Raises:
        UserError: if there is no example.
    """

    @jax.jit
    def add_batch(total, start, params, batch, key):
        def add_example(carry, example):
            total, index = carry
            return (jax.tree.map(jnp.add, total, importance_fn(params, example, key, index)), index + 1), None

        return jax.lax.scan(add_example, (total, start), batch)[0][0]

    total = zeros_like(params)
    count = 0
    for batch in batches:
        total = add_batch(total, count, params, batch, key)
        count += jnp.shape(jax.tree.leaves(batch)[0])[0]
    if count == 0:
        raise UserError("expected examples for the parameters' importance, found none; give at least one batch")
    return jax.tree.map(lambda leaf: leaf / count, total)


def penalty(params: Tree, anchor_params: Tree, fisher: Tree, strength: float | Float[Array, ""]) -> Float[Array, ""]:
    """The loss term strength / 2 * sum fisher * (params - anchor_params)^2.

    Args:
        params: the parameters in training.
        anchor_params: their values after the old tasks.
        fisher: their importance for the old tasks, from `fisher_diagonal`.
        strength: of the whole term; what is right depends on the scale of `fisher`.

    Returns:
        The penalty, zero at the anchor.

    References:
        Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", 2017.
    """

    def leaf_penalty(param, anchor, importance):
        drift = jnp.asarray(param, jnp.float32) - jnp.asarray(anchor, jnp.float32)
        return jnp.sum(importance * jnp.square(drift))

    leaf_penalties = jax.tree.leaves(jax.tree.map(leaf_penalty, params, anchor_params, fisher))
    return jnp.asarray(0.5 * strength * sum(leaf_penalties, start=jnp.float32(0.0)))


def consolidate(
    anchors: tuple[Anchor, ...], params: PyTree, importance: PyTree, *, mode: str, decay: float = 1.0
) -> tuple[Anchor, ...]:
    """The anchors after one more stage.

    Args:
        anchors: of the stages before.
        params: after the newest stage.
        importance: of the parameters for the newest stage.
        mode: "online": one anchor, at the newest parameters, with the importance of all stages (Schwarz et al.,
            2018); "separate": one for each stage (Kirkpatrick et al., 2017).
        decay: of the older importance, online.
    """
    if mode == "separate":
        return (*anchors, Anchor(params, importance))
    for anchor in anchors:
        importance = accumulate(anchor.importance, importance, decay=decay)
    return (Anchor(params, importance),)


def accumulate(old_fisher: Tree, new_fisher: Tree, *, decay: float = 1.0) -> Tree:
    """The importance for all tasks so far, to be used with one anchor: the parameters after the newest task.

    Args:
        old_fisher: the accumulated importance before the newest task.
        new_fisher: that of the newest task.
        decay: of the old importance; 1 forgets nothing, 0 keeps the newest task only.

    Returns:
        decay * old_fisher + new_fisher.

    References:
        Schwarz et al., "Progress & Compress: A scalable framework for continual learning", 2018 (online EWC).
    """
    return jax.tree.map(lambda old, new: decay * old + new, old_fisher, new_fisher)


def zeros_like(params: PyTree) -> PyTree:
    """Returns float32 zeros in the shapes of parameters."""
    return jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), jnp.float32), params)


def sum_of(trees: Iterable[PyTree]) -> PyTree:
    """Returns the sum of trees of one structure."""
    return functools.reduce(lambda total, tree: jax.tree.map(jnp.add, total, tree), trees)
