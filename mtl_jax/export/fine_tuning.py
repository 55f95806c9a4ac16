"""Trains a network in eight bits, for a few steps on its own training images, to keep the outputs of fp32."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from mtl_jax.data import pipeline
from mtl_jax.export.formats import as_onnx, require_packages
from mtl_jax.export.int8 import SEARCHED, TOLERANCE, Quantised, limits, within, written
from mtl_jax.export.network import Form
from mtl_jax.export.rounding import in_eight_bits, quantised
from mtl_jax.models import multi_task, quantisation
from mtl_jax.models.patterns import path_of
from mtl_jax.models.quantisation import RANGES
from mtl_jax.workdir.trained import Trained, computing_in

BATCH_SIZE = 4  # images of a step
CROP = 256  # px: a step sees a window of each image, at the image's own scale, for a fraction of the time
LEARNING_RATE = 3e-5  # at its largest, of Adam
RANGE_RATE = 1e-3  # the same, of the logarithms of ranges
WARM_SHARE = 0.1  # of the steps, in which the rate rises
Ranges = dict[str, np.ndarray]  # "layer/pass" -> f32[2]


Report = Callable[[int, float], None]


def _silent(steps: int, loss: float) -> None:
    del steps, loss


class Tuned(NamedTuple):
    """A network that has been trained in eight bits."""

    network: Trained  # with the ranges among its variables
    whole: int  # layers and passes that may compute in eight bits
    chosen: int  # those that do
    error: float  # of what tasks put out, relative to its spread
    loss: float  # of the last steps, relative to the first


class State(NamedTuple):
    """What a step changes."""

    params: PyTree
    factors: PyTree  # logarithms of what the ranges are multiplied by


def int8_tuned(
    network: Trained,
    folder: Path,
    image: jax.ShapeDtypeStruct,
    form: Form,
    pixels: Sequence[np.ndarray],
    batches: Sequence[np.ndarray],
    *,
    report: Report = _silent,
) -> Quantised:
    """Writes model.int8.qat.onnx.

    Args:
        network: to export.
        folder: gets the file.
        image: what the function takes, the channels last.
        form: what the file takes and gives.
        pixels: as for `tuned`.
        batches: likewise.
        report: likewise.

    Raises:
        UserError: a package is not installed, or the network computes what is not translated.
    """
    require_packages("onnx")
    result = tuned(computing_in(network, "float32"), pixels, batches, report=report)
    translated = as_onnx(result.network, image, form)
    model = quantised(translated.whole, {}, in_eight_bits(translated.whole))
    exported = written(translated._replace(whole=model), folder / "model.int8.qat.onnx", form)
    return Quantised(exported, result.whole, result.chosen, result.error)


def tuned(
    network: Trained, pixels: Sequence[np.ndarray], batches: Sequence[np.ndarray], *, report: Report = _silent
) -> Tuned:
    """Trains a network in eight bits to keep its own outputs, every task's alike; norms keep their statistics.

    Args:
        network: in fp32.
        pixels: training images to take ranges from, [1, height, width, 3] each.
        batches: of training images, one for each step.
        report: is called with the number of steps so far and the last loss, relative to the first.

    References:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        2018. Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015 (the network is its own
        teacher).
    """
    ranges = observed(network, pixels)
    chosen, _ = searched(network, ranges, np.concatenate(pixels[:SEARCHED]))
    start = nested({name: ranges[name] for name in chosen})
    state, loss = trained(network, start, batches, report=report)
    variables = {**network.variables, "params": state.params, RANGES: scaled(start, state.factors)}
    result = network._replace(variables=jax.device_get(variables))
    sample = np.concatenate(pixels[:SEARCHED])
    error = apart(raw_outputs(network, sample), raw_outputs(result, sample)).max()
    return Tuned(result, len(ranges), len(chosen), float(error), loss)


def observed(network: Trained, pixels: Sequence[np.ndarray]) -> Ranges:
    """Returns between which values what each layer reads is rounded, by its path and the pass.

    Left out are the layers that tasks read last, so that a box as well as a score keeps its own scale.
    """
    look = jax.jit(functools.partial(quantisation.observed, network.setup.model, tasks=network.names))
    values: dict[str, list[np.ndarray]] = {}
    for image in pixels:
        samples = jax.device_get(look(network.variables, image))
        for path, sample in jax.tree_util.tree_leaves_with_path(samples):
            if not set(path_of(path).split("/")[:-1]) & set(network.setup.tasks):
                values.setdefault(path_of(path), []).append(sample)
    return {name: np.array(limits(np.concatenate(samples)), np.float32) for name, samples in values.items()}


def searched(
    network: Trained, ranges: Ranges, pixels: np.ndarray, *, tolerance: float = TOLERANCE
) -> tuple[list[str], float]:
    """Returns the layers and passes that may compute in eight bits, and the error with them; as `int8.searched`."""
    expected = raw_outputs(network, pixels)
    run = jax.jit(functools.partial(_raw, network))

    def errors(names: Sequence[str]) -> np.ndarray:
        limited = {name: limit if name in set(names) else np.zeros_like(limit) for name, limit in ranges.items()}
        return apart(expected, jax.device_get(run({**network.variables, RANGES: nested(limited)}, pixels)))

    return within(errors, list(ranges), tolerance=tolerance)


def trained(
    network: Trained, ranges: PyTree, batches: Sequence[np.ndarray], *, report: Report = _silent
) -> tuple[State, float]:
    """Returns parameters and ranges after a step for each batch, and the last losses relative to the first."""
    fixed, ranges = jax.tree.map(jnp.asarray, (network.variables, ranges))
    start = State(fixed["params"], jax.tree.map(jnp.zeros_like, ranges))
    # One vector of all: an optimizer compiles faster for it than for hundreds of arrays.
    vector, unravel = ravel_pytree(start)
    rates, _ = ravel_pytree(
        State(
            jax.tree.map(lambda leaf: jnp.full_like(leaf, LEARNING_RATE), start.params),
            jax.tree.map(lambda leaf: jnp.full_like(leaf, RANGE_RATE), start.factors),
        )
    )
    optimizer = _optimizer(len(batches))

    def losses(vector: Array, fixed: PyTree, image: Array) -> Float[Array, " tasks"]:
        state = unravel(vector)
        variables = {**fixed, "params": state.params, RANGES: scaled(ranges, state.factors)}
        teacher_raw, raw = _raw(network, fixed, image), _raw(network, variables, image)
        size = image.shape[1], image.shape[2]
        return jnp.stack(
            [network.setup.tasks[name].distillation_loss(raw[name], teacher_raw[name], size) for name in network.names]
        )

    @jax.jit
    def step(
        vector: Array, optimizer_state: Any, fixed: PyTree, image: Array, weights: Array
    ) -> tuple[Array, Any, Array]:
        def weighted(vector: Array) -> tuple[Array, Array]:
            task_losses = losses(vector, fixed, image)
            return weights @ task_losses, task_losses

        gradient, task_losses = jax.grad(weighted, has_aux=True)(vector)
        update, optimizer_state = optimizer.update(gradient, optimizer_state)
        return vector - rates * jnp.asarray(update), optimizer_state, task_losses

    optimizer_state, history = optimizer.init(vector), []
    # What each task has lost at the start counts alike, whatever its loss is measured in. One program for all steps:
    # to compile takes longer than some of them.
    none = jnp.zeros(len(network.names))
    first_losses = step(vector, optimizer_state, fixed, jnp.asarray(batches[0]), none)[-1]
    weights = 1 / jnp.maximum(len(network.names) * first_losses, jnp.finfo(jnp.float32).tiny)
    for image in pipeline.prefetch(batches, threads=1):
        vector, optimizer_state, task_losses = step(vector, optimizer_state, fixed, jnp.asarray(image), weights)
        history.append(float(weights @ task_losses))
        report(len(history), history[-1])
    return unravel(vector), float(np.mean(history[-max(len(history) // 10, 1) :]))


def _optimizer(steps: int) -> optax.GradientTransformation:
    """Adam, whose rate rises to 1 and falls to 0."""
    warm_steps = max(int(WARM_SHARE * steps), 1)
    schedule = optax.warmup_cosine_decay_schedule(1 / warm_steps, 1.0, warm_steps, max(steps, warm_steps + 1))
    return optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(schedule))


def scaled(ranges: PyTree, factors: PyTree) -> PyTree:
    """Returns ranges times the factors whose logarithms are given."""
    return jax.tree.map(lambda limit, factor: limit * jnp.exp(factor), ranges, factors)


def nested(ranges: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"a/b/c": range} as {"a": {"b": {"c": range}}}."""
    tree: dict[str, Any] = {}
    for name, limit in ranges.items():
        *layers, last = name.split("/")
        functools.reduce(lambda node, layer: node.setdefault(layer, {}), layers, tree)[last] = limit
    return tree


def raw_outputs(network: Trained, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what the head emits for each task, in eight bits where the network has ranges."""
    return jax.device_get(jax.jit(functools.partial(_raw, network))(network.variables, pixels))


def apart(expected: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns, of each task, the size of the difference relative to the spread, of each channel by itself."""
    errors = []
    for name, value in expected.items():
        value, output = (np.asarray(array, np.float64).reshape(-1, array.shape[-1]) for array in (value, outputs[name]))
        errors.append(np.sqrt((((value - output) ** 2).mean(axis=0) / (value.var(axis=0) + 1e-6)).mean()))
    return np.array(errors)


def _raw(network: Trained, variables: PyTree, image: Any) -> dict[str, Array]:
    return multi_task.eval_raw(network.setup.model, variables, image, tasks=network.names)[0]
