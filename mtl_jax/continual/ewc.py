"""Elastic weight consolidation: parameters are held in proportion to the Fisher information of old tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from mtl_jax.errors import UserError

# Trees of the parameters' structure and shapes, in one call all the same.
Tree = PyTree[Float[Array | np.ndarray, "?*shape"], "Params"]


class Anchor(NamedTuple):
    """What holds parameters in place: where they were, and how much each matters."""

    params: PyTree
    importance: PyTree  # float32, >= 0


def fisher_diagonal(
    per_example_loss_fn: Callable[..., Array],
    params: Tree,
    batches: Iterable[Any],
    estimator: str = "empirical",
    *,
    key: PRNGKeyArray | None = None,
) -> Tree:
    """The diagonal of the Fisher information: the mean over examples of the squared gradient of each example.

    Examples are taken one at a time, so that the result does not depend on how they are batched and memory
    does not grow with the batch; the step is compiled once for each shape of a batch.

    Args:
        per_example_loss_fn: for "empirical" `(params, example) -> f32[]`, the negative log-likelihood of the
            example's own label; for "sampled" `(params, example, key) -> f32[]`, the same for a label that it
            draws from the model with `key` (no gradient through the draw); for "exact"
            `(params, example) -> f32[classes]`, the log-probabilities; their distribution gives the mean in
            full. An example is one row of a batch, without the batch axis.
        params: where the gradient is taken.
        batches: pytrees of arrays with a leading batch axis; they may differ in size.
        estimator: "empirical", "sampled" or "exact".
        key: needed by "sampled"; example i uses `fold_in(key, i)`.

    Returns:
        The diagonal in float32, a pytree like `params`.

    Raises:
        UserError: if there is no example, the estimator is unknown, or "sampled" has no key.

    References:
        Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", 2017.
        Kunstner, Balles, Hennig, "Limitations of the Empirical Fisher Approximation", 2019 (how they differ).
    """
    if estimator not in ESTIMATORS:
        raise UserError(f'expected estimator to be one of {", ".join(ESTIMATORS)}, found "{estimator}"')
    if estimator == "sampled" and key is None:
        raise UserError('expected a key for estimator "sampled", found none: give key=jax.random.key(seed)')
    squares = ESTIMATORS[estimator]

    def squared_gradient(params, example, key, index):
        return squares(per_example_loss_fn, params, example, key, index)

    return mean_over_examples(squared_gradient, params, batches, key=key)


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

    total = _zeros_like(params)
    count = 0
    for batch in batches:
        total = add_batch(total, count, params, batch, key)
        count += jnp.shape(jax.tree.leaves(batch)[0])[0]
    if count == 0:
        raise UserError("expected examples for the parameters' importance, found none: give at least one batch")
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

    parts = jax.tree.leaves(jax.tree.map(leaf_penalty, params, anchor_params, fisher))
    return jnp.asarray(0.5 * strength * sum(parts, start=jnp.float32(0.0)))


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


def normalise(fisher: Tree, *, clip: float | None = None) -> Tree:
    """Optional rescaling to mean 1 over all parameters, so that one strength serves losses of any scale.

    This leaves the Bayesian reading of EWC: a task with ten times the information no longer counts ten times.

    Args:
        fisher: from `fisher_diagonal`. Parameters that the task does not use count as zeros in the mean.
        clip: the largest value kept after the rescaling; few parameters carry most of the information, and a
            gradient step through a steep penalty diverges.

    Returns:
        The rescaled diagonal; all zeros stay zeros.
    """
    leaves = jax.tree.leaves(fisher)
    mean = sum((jnp.sum(leaf) for leaf in leaves), start=jnp.float32(0.0)) / sum(leaf.size for leaf in leaves)
    scale = jnp.where(mean > 0, mean, 1.0)
    return jax.tree.map(lambda leaf: jnp.minimum(leaf / scale, jnp.inf if clip is None else clip), fisher)


def _zeros_like(params: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), jnp.float32), params)


def _squared(gradient: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.square(leaf.astype(jnp.float32)), gradient)


def _empirical(loss_fn, params, example, key, index):
    del key, index
    return _squared(jax.grad(loss_fn)(params, example))


def _sampled(loss_fn, params, example, key, index):
    return _squared(jax.grad(loss_fn)(params, example, jax.random.fold_in(key, index)))


def _exact(log_probability_fn, params, example, key, index):
    """The sum over classes of p * (gradient of log p)^2, one class at a time: all at once would not fit."""
    del key, index
    log_probability, pull_back = jax.vjp(lambda params: log_probability_fn(params, example), params)
    if log_probability.ndim != 1:
        raise UserError(
            f'expected log-probabilities f32[classes] of one example for estimator "exact", found shape '
            f"{list(log_probability.shape)}: drop the batch axis"
        )

    def add_class(total, row):
        one_hot, probability = row
        square = _squared(pull_back(one_hot)[0])
        return jax.tree.map(lambda sum_, term: sum_ + probability * term, total, square), None

    one_hots = jnp.eye(log_probability.shape[0], dtype=log_probability.dtype)
    return jax.lax.scan(add_class, _zeros_like(params), (one_hots, jnp.exp(log_probability)))[0]


# (per_example_loss_fn, params, example, key, index of the example) -> squared gradient
ESTIMATORS: dict[str, Callable[..., Any]] = {"empirical": _empirical, "sampled": _sampled, "exact": _exact}
