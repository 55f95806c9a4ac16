"""Optax chains from a stage's settings: the update rule, its schedule, and rates of their own for parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
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


class Optimizer(NamedTuple):
    """What turns a gradient into an update; it works on one vector per group of parameters.

    Far fewer operations are compiled and launched so than with those of every parameter.
    """

    init: Callable[[PyTree], optax.OptState]  # of parameters, or of their shapes
    squared_norm: Callable[[PyTree], Float[Array, ""]]  # of a gradient
    # (gradient, state, parameters, factor of the gradient) -> update, state
    update: Callable[[PyTree, optax.OptState, PyTree, Float[Array, ""]], tuple[PyTree, optax.OptState]]


def build(
    rule: str,
    *,
    learning_rate: optax.Schedule,
    weight_decay: float,
    momentum: float,
    rates: Mapping[str, float] | None = None,
) -> Optimizer:
    """Returns what makes an update of a gradient.

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


def clip_factor(squared_norms: Iterable[Float[Array, ""]], largest_norm: float) -> Float[Array, ""]:
    """Returns the factor that shortens a gradient to `largest_norm`, or 1 where it is shorter; 0 does not clip.

    Args:
        squared_norms: of the gradient's parts.
        largest_norm: of all parts together.
    """
    if not largest_norm:
        return jnp.ones(())
    norm = jnp.sqrt(sum(squared_norms, start=jnp.zeros(())))
    return jnp.where(norm < largest_norm, 1.0, largest_norm / norm)


def _packed(tx: optax.GradientTransformation, rates: Mapping[str, float]) -> Optimizer:
    """Applies an elementwise transform to one vector per group."""

    def update(
        gradient: PyTree, state: optax.OptState, params: PyTree, factor: Float[Array, ""]
    ) -> tuple[PyTree, optax.OptState]:
        vectors = {group: factor * vector for group, vector in pack(gradient, rates).items()}
        updates, state = tx.update(vectors, state, pack(params, rates))
        return unpack(updates, rates, like=gradient), state

    def squared_norm(gradient: PyTree) -> Float[Array, ""]:
        return sum((jnp.square(vector).sum() for vector in pack(gradient, rates).values()), start=jnp.zeros(()))

    def init(params: PyTree) -> optax.OptState:
        # No rule here begins with the parameters' values, and packing them one by one would compile a program for each.
        shapes = jax.eval_shape(lambda tree: pack(tree, rates), params)
        return tx.init(jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes))

    return Optimizer(init, squared_norm, update)


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
