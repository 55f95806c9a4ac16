"""Optax chains from a stage's settings: the update rule, its schedule, and rates of their own for parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from mtl_jax.errors import UserError
from mtl_jax.models.patterns import matches, path_of

SCHEDULES = ("constant", "linear", "cosine")
RULES = ("adamw", "sgd")


def learning_rate_schedule(
    schedule: str, *, learning_rate: float, total_steps: int, warmup_fraction: float
) -> optax.Schedule:
    """Returns step -> rate: a linear warm-up to `learning_rate`, then constant, linear or cosine decay to zero.

    Raises:
        UserError: an unknown schedule.
    """
    warmup_steps = round(warmup_fraction * total_steps)
    decay_steps = max(1, total_steps - warmup_steps)
    if schedule == "constant":
        after = optax.constant_schedule(learning_rate)
    elif schedule == "linear":
        after = optax.linear_schedule(learning_rate, 0.0, decay_steps)
    elif schedule == "cosine":
        after = optax.cosine_decay_schedule(learning_rate, decay_steps)
    else:
        raise UserError(f"schedule: expected one of {', '.join(SCHEDULES)}, found {schedule!r}")
    # The first step already moves: the rate rises from learning_rate / (warmup_steps + 1).
    warmup = optax.linear_schedule(learning_rate / (warmup_steps + 1), learning_rate, max(1, warmup_steps))
    return optax.join_schedules([warmup, after], [warmup_steps])


def build(
    rule: str,
    *,
    learning_rate: optax.Schedule,
    weight_decay: float,
    momentum: float,
    rates: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """Returns the transform from one gradient to one update.

    Args:
        rule: "adamw" (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019) or "sgd" with
            Nesterov momentum.
        learning_rate: step -> rate.
        weight_decay: decoupled, on leaves of two or more axes only.
        momentum: of "sgd".
        rates: pattern of parameters -> factor on their updates; where several fit, their product.

    Raises:
        UserError: an unknown rule.
    """
    if rule == "adamw":
        direction = optax.scale_by_adam()
    elif rule == "sgd":
        direction = optax.trace(decay=momentum, nesterov=True)
    else:
        raise UserError(f"optimizer: expected one of {', '.join(RULES)}, found {rule!r}")
    transforms = [direction]
    if weight_decay:
        transforms += [optax.add_decayed_weights(weight_decay, mask=_are_kernels)]
    transforms += [optax.scale_by_learning_rate(learning_rate)]
    transforms += [optax.stateless(_scaled)]
    return _packed(optax.chain(*transforms), rates or {})


def clip(grads: Sequence[PyTree], norm: float) -> list[PyTree]:
    """Shortens gradients of several parts of a network so that together they are no longer than `norm`; 0 is off."""
    if not norm:
        return list(grads)
    clipped: Any = optax.clip_by_global_norm(norm).update(list(grads), optax.EmptyState())[0]
    return clipped


def _packed(tx: optax.GradientTransformation, rates: Mapping[str, float]) -> optax.GradientTransformation:
    """Applies an elementwise transform to one vector per group: far fewer operations to compile and to launch."""

    def update(updates: PyTree, state: optax.OptState, params: PyTree | None = None) -> tuple[PyTree, optax.OptState]:
        vectors, state = tx.update(pack(updates, rates), state, None if params is None else pack(params, rates))
        return unpack(vectors, rates, like=updates), state

    def init(params: PyTree) -> optax.OptState:
        # No rule here begins with the parameters' values, and packing them one by one would compile a program for each.
        shapes = jax.eval_shape(lambda tree: pack(tree, rates), params)
        return tx.init(jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes))

    return optax.GradientTransformation(init, update)


def pack(tree: PyTree, rates: Mapping[str, float]) -> dict[str, Float[Array, " group"]]:
    """Concatenates the leaves that are treated alike: of one factor on the rate, and all or none weight-decayed.

    Args:
        tree: {"backbone", ...}: parameters, or gradients like them.
        rates: pattern -> factor.

    Returns:
        {group: vector}; "kernel_0.3" holds the kernels of factor 0.3.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    groups: dict[str, list[Array]] = {}
    for path, leaf in leaves:
        groups.setdefault(_group(path, leaf, rates), []).append(leaf.ravel())
    return {group: jnp.concatenate(leaves) for group, leaves in sorted(groups.items())}


def unpack(vectors: Any, rates: Mapping[str, float], *, like: PyTree) -> PyTree:
    """The inverse of `pack`.

    Args:
        vectors: one for each group.
        rates: pattern -> factor.
        like: a tree of the leaves' places and shapes.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    offsets: dict[str, int] = dict.fromkeys(vectors, 0)
    unpacked = []
    for path, leaf in leaves:
        group = _group(path, leaf, rates)
        unpacked.append(vectors[group][offsets[group] : offsets[group] + leaf.size].reshape(leaf.shape))
        offsets[group] += leaf.size
    return jax.tree_util.tree_unflatten(structure, unpacked)


def _group(path: tuple, leaf: Any, rates: Mapping[str, float]) -> str:
    factor = math.prod(factor for pattern, factor in rates.items() if matches(path_of(path), (pattern,)))
    return f"{'kernel' if leaf.ndim > 1 else 'vector'}_{factor:g}"


def _factor(group: str) -> float:
    return float(group.partition("_")[2])


def _scaled(vectors: Any, params: Any = None) -> Any:
    del params
    return {group: _factor(group) * vector for group, vector in vectors.items()}


def _are_kernels(vectors: Any) -> Any:
    return {group: group.startswith("kernel") for group in vectors}


class EmaState(NamedTuple):
    """The averaged parameters and how many updates they have seen."""

    params: PyTree
    count: Int[Array, ""]


def ema_update(state: EmaState, params: PyTree, decay: float) -> EmaState:
    """Moves the average towards `params`; early on the decay is (1 + n) / (10 + n), so that it forgets the start.

    References:
        Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992. The warm-up is that of
        TensorFlow's `ExponentialMovingAverage(num_updates=...)`.
    """
    count = state.count.astype("float32")
    rate: Float[Array, ""] = jnp.minimum(decay, (1.0 + count) / (10.0 + count))
    averaged = jax.tree.map(lambda old, new: old + (1.0 - rate) * (new - old), state.params, params)
    return EmaState(averaged, state.count + 1)
