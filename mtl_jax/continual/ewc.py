"""Elastic weight consolidation: the penalty on a parameter is proportional to its Fisher information for old tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from mtl_jax.continual import importance
from mtl_jax.continual.consolidation import (
    Anchor,
    Consolidation,
    Tree,
    accumulate,
    consolidate,
    mean_over_examples,
    penalty,
    sum_of,
    zeros_like,
)
from mtl_jax.continual.method import Finished, StageView, Starting, setting
from mtl_jax.errors import UserError

__all__ = ["EWC", "Anchor", "accumulate", "consolidate", "fisher_diagonal", "normalise", "penalty"]


@dataclasses.dataclass(frozen=True)
class EWC(Consolidation):
    """Parameters are held by their Fisher information for the old stages.

    References:
        Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", 2017.
    """

    estimator: str = setting(
        "empirical",
        "of the Fisher information: by the labels, by labels drawn from the network's outputs, or by all classes",
        choices=("empirical", "sampled", "exact"),
    )
    examples: int = setting(100, "training images that it is estimated from, at the end of a stage")

    def refuse(self, stage: StageView, starting: Starting) -> None:
        super().refuse(stage, starting)
        if self.estimator == "exact" and self.leaves(stage.keeps, stage.index):
            for task in starting.tasks.own:
                importance.reader(stage.tasks[task])

    def importance(self, stage: StageView, finished: Finished) -> PyTree:
        forward = importance.forward_of_examples(stage.model, finished.end["batch_stats"])
        key, params = jax.random.key(stage.seed), finished.end["params"]

        def example_gradients() -> Iterator[PyTree]:
            for number, stream in enumerate(stage.streams):
                example_key = jax.random.fold_in(key, number)
                for function in self._functions(forward, stage.stream_tasks(stream)):
                    examples = stage.batches(stream, images=self.examples)
                    yield fisher_diagonal(function, params, examples, self.estimator, key=example_key)

        return sum_of(example_gradients())

    def _functions(self, forward: importance.OutputFunction, tasks: Mapping[str, Any]) -> list[Callable[..., Array]]:
        """Of what the Fisher information is taken: of a stream's labels, or of each of its tasks."""
        if self.estimator == "exact":
            return [importance.log_probabilities(forward, task) for task in tasks.values()]
        loss = {"empirical": importance.labelled_loss, "sampled": importance.sampled_loss}[self.estimator]
        return [loss(forward, tasks)]


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
        raise UserError('expected a key for estimator "sampled", found none; give key=jax.random.key(seed)')
    squares = ESTIMATORS[estimator]

    def squared_gradient(params, example, key, index):
        return squares(per_example_loss_fn, params, example, key, index)

    return mean_over_examples(squared_gradient, params, batches, key=key)


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
            f"{list(log_probability.shape)}; drop the batch axis"
        )

    def add_class(total, row):
        one_hot, probability = row
        square = _squared(pull_back(one_hot)[0])
        return jax.tree.map(lambda sum_, term: sum_ + probability * term, total, square), None

    one_hots = jnp.eye(log_probability.shape[0], dtype=log_probability.dtype)
    return jax.lax.scan(add_class, zeros_like(params), (one_hots, jnp.exp(log_probability)))[0]


# (per_example_loss_fn, params, example, key, index of the example) -> squared gradient
ESTIMATORS: dict[str, Callable[..., Any]] = {"empirical": _empirical, "sampled": _sampled, "exact": _exact}
