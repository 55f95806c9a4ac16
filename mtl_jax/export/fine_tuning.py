"""Quantisation-aware fine-tuning: distils the fp32 network into its 8-bit form on its training images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from mtl_jax.data import pipeline
from mtl_jax.export.formats import require_packages, served_onnx, translate
from mtl_jax.export.int8 import (
    SEARCH_IMAGES,
    TOLERANCE,
    Quantised,
    quantisation_limits,
    select_within_tolerance,
)
from mtl_jax.export.network import Form
from mtl_jax.export.rounding import quantise, quantised_convolutions
from mtl_jax.models import multi_task, quantisation
from mtl_jax.models.patterns import path_of
from mtl_jax.models.quantisation import RANGES
from mtl_jax.workdir.trained import Trained, computing_in

BATCH_SIZE = 4  # images of a step
CROP = 256  # px; steps use random crops at full scale, which take a fraction of the time
LEARNING_RATE = 3e-5  # peak rate of Adam for the parameters
RANGE_RATE = 1e-3  # peak rate of Adam for the logarithms of the ranges
WARM_SHARE = 0.1  # share of the steps with a rising rate
Ranges = dict[str, np.ndarray]  # "layer/pass" -> f32[2]


Report = Callable[[int, float], None]


def _silent(steps: int, loss: float) -> None:
    del steps, loss


class TunedNetwork(NamedTuple):
    """A network after quantisation-aware fine-tuning."""

    network: Trained  # its variables include the ranges
    candidate_count: int  # layers and passes that may be quantised
    quantised_count: int  # layers and passes that are quantised
    error: float  # of the raw outputs, relative to their spread
    loss: float  # mean of the last steps, relative to the first


class State(NamedTuple):
    """Trained state of the fine-tuning."""

    params: PyTree
    factors: PyTree  # logarithms of the factors of the ranges


def tuned_network(
    network: Trained,
    image: jax.ShapeDtypeStruct,
    form: Form,
    pixels: Sequence[np.ndarray],
    batches: Sequence[np.ndarray],
    *,
    report: Report = _silent,
) -> Quantised:
    """Quantises a network by quantisation-aware fine-tuning.

    Args:
        network: network to export.
        image: input shape, channels last.
        form: decoding and layout.
        pixels: as for `fine_tune`.
        batches: as for `fine_tune`.
        report: as for `fine_tune`.

    Raises:
        UserError: a package is not installed, or the network uses an operation that is not translated.
    """
    require_packages("onnx")
    result = fine_tune(computing_in(network, "float32"), pixels, batches, report=report)
    separate, float32_network, any_batch = translate(result.network, image, form)
    model = quantise(separate, {}, quantised_convolutions(separate))
    converted = served_onnx(model, float32_network, form, any_batch=any_batch)
    return Quantised(converted, result.candidate_count, result.quantised_count, result.error)


def fine_tune(
    network: Trained, pixels: Sequence[np.ndarray], batches: Sequence[np.ndarray], *, report: Report = _silent
) -> TunedNetwork:
    """Fine-tunes a network in 8 bits towards its fp32 outputs, with equal task weights and fixed norm statistics.

    Args:
        network: fp32 network.
        pixels: calibration images, [1, height, width, 3] each.
        batches: batches of training images, one for each step.
        report: called with the number of finished steps and the last loss, relative to the first.

    References:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        2018. Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015 (the network is its own
        teacher).
    """
    ranges = measure_ranges(network, pixels)
    selected, _ = select_layers(network, ranges, np.concatenate(pixels[:SEARCH_IMAGES]))
    start = {name: ranges[name] for name in selected}
    state, loss = train(network, start, batches, report=report)
    variables = {**network.variables, "params": state.params, RANGES: scale_ranges(start, state.factors)}
    result = network._replace(variables=jax.device_get(variables))
    sample = np.concatenate(pixels[:SEARCH_IMAGES])
    error = relative_errors(raw_outputs(network, sample), raw_outputs(result, sample)).max()
    return TunedNetwork(result, len(ranges), len(selected), float(error), loss)


def measure_ranges(network: Trained, pixels: Sequence[np.ndarray]) -> Ranges:
    """Measures the input range of each layer, by its path and the pass.

    The last layers of each task are excluded, so that boxes and scores keep their scales.
    """
    observe = jax.jit(functools.partial(quantisation.observed, network.setup.model, tasks=network.names))
    values: dict[str, list[np.ndarray]] = {}
    for image in pixels:
        samples = jax.device_get(observe(network.variables, image))
        for path, sample in jax.tree_util.tree_leaves_with_path(samples):
            if not set(path_of(path).split("/")[:-1]) & set(network.setup.tasks):
                values.setdefault(path_of(path), []).append(sample)
    return {
        name: np.array(quantisation_limits(np.concatenate(samples)), np.float32) for name, samples in values.items()
    }


def layer_of(name: str) -> str:
    """Returns the layer's path of "layer/pass"."""
    return name.rpartition("/")[0]


def factor_names(ranges: Ranges) -> dict[str, str]:
    """Returns the name of each range's factor: passes in which a layer reads the same values keep one range."""
    first_names: dict[tuple[str, bytes], str] = {}
    return {
        name: first_names.setdefault((layer_of(name), np.asarray(limit).tobytes()), name)
        for name, limit in ranges.items()
    }


def select_layers(
    network: Trained, ranges: Ranges, pixels: np.ndarray, *, tolerance: float = TOLERANCE
) -> tuple[list[str], float]:
    """Selects the layers to quantise, each in all its passes; returns these and the error, as `int8.select_layers`."""
    expected = raw_outputs(network, pixels)
    run = jax.jit(functools.partial(_raw, network))

    def errors(layers: Sequence[str]) -> np.ndarray:
        selected = set(layers)
        limited = {
            name: limit if layer_of(name) in selected else np.zeros_like(limit) for name, limit in ranges.items()
        }
        return relative_errors(
            expected, jax.device_get(run({**network.variables, RANGES: nest_by_path(limited)}, pixels))
        )

    layers = list(dict.fromkeys(map(layer_of, ranges)))
    selected, error = select_within_tolerance(errors, layers, tolerance=tolerance)
    return [name for name in ranges if layer_of(name) in set(selected)], error


def train(
    network: Trained, ranges: Ranges, batches: Sequence[np.ndarray], *, report: Report = _silent
) -> tuple[State, float]:
    """Trains parameters and ranges for one step per batch; returns them and the last losses relative to the first."""
    fixed = jax.tree.map(jnp.asarray, network.variables)
    start = State(fixed["params"], {name: jnp.zeros(2) for name in factor_names(ranges).values()})
    # One flat vector: the optimizer compiles faster for it than for hundreds of arrays.
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
        variables = {**fixed, "params": state.params, RANGES: scale_ranges(ranges, state.factors)}
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
    # Each task's loss is normalised by its first value. The same compiled step computes it, because compiling another
    # program takes longer than some steps.
    zero_weights = jnp.zeros(len(network.names))
    first_losses = step(vector, optimizer_state, fixed, jnp.asarray(batches[0]), zero_weights)[-1]
    weights = 1 / jnp.maximum(len(network.names) * first_losses, jnp.finfo(jnp.float32).tiny)
    for image in pipeline.prefetch(batches, threads=1):
        vector, optimizer_state, task_losses = step(vector, optimizer_state, fixed, jnp.asarray(image), weights)
        history.append(float(weights @ task_losses))
        report(len(history), history[-1])
    return unravel(vector), float(np.mean(history[-max(len(history) // 10, 1) :]))


def _optimizer(steps: int) -> optax.GradientTransformation:
    """Adam with a relative rate that rises to 1 and decays to 0."""
    warm_steps = max(int(WARM_SHARE * steps), 1)
    schedule = optax.warmup_cosine_decay_schedule(1 / warm_steps, 1.0, warm_steps, max(steps, warm_steps + 1))
    return optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(schedule))


def scale_ranges(ranges: Ranges, factors: Mapping[str, Array]) -> PyTree:
    """Returns the ranges, nested by path, multiplied by the exponentials of their factors."""
    names = factor_names(ranges)
    return nest_by_path({name: limit * jnp.exp(factors[names[name]]) for name, limit in ranges.items()})


def nest_by_path(ranges: Mapping[str, Any]) -> dict[str, Any]:
    """Converts {"a/b/c": range} to {"a": {"b": {"c": range}}}."""
    tree: dict[str, Any] = {}
    for name, limit in ranges.items():
        *layers, leaf = name.split("/")
        functools.reduce(lambda node, layer: node.setdefault(layer, {}), layers, tree)[leaf] = limit
    return tree


def raw_outputs(network: Trained, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the raw outputs of each task, in 8 bits where the network has ranges."""
    return jax.device_get(jax.jit(functools.partial(_raw, network))(network.variables, pixels))


def relative_errors(expected: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns each task's root mean square error relative to the standard deviation of each channel."""
    errors = []
    for name, value in expected.items():
        value, output = (np.asarray(array, np.float64).reshape(-1, array.shape[-1]) for array in (value, outputs[name]))
        errors.append(np.sqrt((((value - output) ** 2).mean(axis=0) / (value.var(axis=0) + 1e-6)).mean()))
    return np.array(errors)


def _raw(network: Trained, variables: PyTree, image: Any) -> dict[str, Array]:
    return multi_task.eval_raw(network.setup.model, variables, image, tasks=network.names)[0]
