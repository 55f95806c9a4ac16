"""Optax chains from a stage's settings: clipping, the update rule, schedule, and a rate of its own for the backbone."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from mtl_jax.errors import UserError

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
        raise UserError(f"schedule is {schedule!r}; expected one of {', '.join(SCHEDULES)}")
    # The first step already moves: the rate rises from learning_rate / (warmup_steps + 1).
    warmup = optax.linear_schedule(learning_rate / (warmup_steps + 1), learning_rate, max(1, warmup_steps))
    return optax.join_schedules([warmup, after], [warmup_steps])


def build(
    rule: str,
    *,
    learning_rate: optax.Schedule,
    backbone_rate: float,
    weight_decay: float,
    momentum: float,
    clip_norm: float,
) -> optax.GradientTransformation:
    """Returns the transform from one gradient to one update.

    Args:
        rule: "adamw" (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019) or "sgd" with
            Nesterov momentum.
        learning_rate: step -> rate.
        backbone_rate: factor on the updates of the backbone, in branches too.
        weight_decay: decoupled, on leaves of two or more axes only.
        momentum: of "sgd".
        clip_norm: largest global norm of the gradient; 0 does not clip.

    Raises:
        UserError: an unknown rule.
    """
    if rule == "adamw":
        direction = optax.scale_by_adam()
    elif rule == "sgd":
        direction = optax.trace(decay=momentum, nesterov=True)
    else:
        raise UserError(f"optimizer is {rule!r}; expected one of {', '.join(RULES)}")
    parts = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    parts += [direction]
    if weight_decay:
        parts += [optax.add_decayed_weights(weight_decay, mask={group: group.endswith("kernel") for group in GROUPS})]
    parts += [optax.scale_by_learning_rate(learning_rate)]
    if backbone_rate != 1.0:
        parts += [optax.masked(optax.scale(backbone_rate), {group: group.startswith("backbone") for group in GROUPS})]
    return packed(optax.chain(*parts))


# Parameters that the optimizer treats alike: by part of the network and by whether they are weight-decayed.
GROUPS = ("backbone_kernel", "backbone_vector", "upper_kernel", "upper_vector")


def packed(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies an elementwise transform to one vector per group: far fewer operations to compile and to launch.

    Args:
        tx: over {group: vector}. Global norms are the same over the vectors as over the leaves.
    """

    def update(updates: PyTree, state: optax.OptState, params: PyTree | None = None) -> tuple[PyTree, optax.OptState]:
        vectors, state = tx.update(pack(updates), state, None if params is None else pack(params))
        return unpack(vectors, like=updates), state

    return optax.GradientTransformation(lambda params: tx.init(pack(params)), update)


def pack(tree: PyTree) -> dict[str, Float[Array, " group"]]:
    """Concatenates the leaves of each of `GROUPS`.

    Args:
        tree: {"backbone", ...}: parameters, or gradients like them.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    parts = {group: [leaf.ravel() for path, leaf in leaves if _group(path, leaf) == group] for group in GROUPS}
    return {group: jnp.concatenate(each) if each else jnp.zeros(0) for group, each in parts.items()}


def unpack(vectors: Any, *, like: PyTree) -> PyTree:
    """The inverse of `pack`.

    Args:
        vectors: one for each group.
        like: a tree of the leaves' places and shapes.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    taken: dict[str, int] = dict.fromkeys(GROUPS, 0)
    fresh = []
    for path, leaf in leaves:
        group = _group(path, leaf)
        fresh.append(vectors[group][taken[group] : taken[group] + leaf.size].reshape(leaf.shape))
        taken[group] += leaf.size
    return jax.tree_util.tree_unflatten(structure, fresh)


def _group(path: tuple, leaf: Any) -> str:
    part = "backbone" if any(entry.key == "backbone" for entry in path) else "upper"  # in branches too
    return f"{part}_{'kernel' if leaf.ndim > 1 else 'vector'}"


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
