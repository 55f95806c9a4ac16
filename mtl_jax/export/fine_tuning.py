"""Quantisation-aware fine-tuning: distils the fp32 network into its 8-bit form on its training images."""

from __future__ import annotations

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
from mtl_jax.export.int8 import Quantised
from mtl_jax.export.layer_ranges import LayerRanges, layer_ranges
from mtl_jax.export.network import Form
from mtl_jax.export.rounding import quantise, quantised_convolutions
from mtl_jax.models import multi_task
from mtl_jax.models.quantisation import RANGES
from mtl_jax.workdir.trained import Trained, computing_in

BATCH_SIZE = 4  # images of a step
CROP = 256  # px; steps use random crops at full scale, which take a fraction of the time
LEARNING_RATE = 1e-4  # peak rate of Adam for the parameters
RANGE_RATE = 1e-3  # peak rate of Adam for the logarithms of the ranges
WARM_SHARE = 0.1  # share of the steps with a rising rate
TOLERANCE = 0.5  # of the raw outputs before the first step, relative to their spread: most of it is trained away

Report = Callable[[int, float], None]


def _silent(steps: int, loss: float) -> None:
    del steps, loss


class State(NamedTuple):
    """Trained state of the fine-tuning."""

    params: PyTree
    factors: Mapping[str, Array]  # logarithms of the factors of the ranges


def tuned_network(
    network: Trained,
    image: jax.ShapeDtypeStruct,
    form: Form,
    pixels: Sequence[np.ndarray],
    batches: Sequence[np.ndarray],
    *,
    report: Report = _silent,
) -> Quantised:
    """Quantises a network by quantisation-aware fine-tuning, towards its fp32 outputs.

    It starts from the ranges of quantisation after training. Tasks have equal weights; norm statistics are fixed.

    Args:
        network: network to export.
        image: input shape, channels last.
        form: decoding and layout.
        pixels: calibration images, [1, height, width, 3] each.
        batches: batches of training images, one for each step.
        report: called with the number of finished steps and the last loss, relative to the first.

    Raises:
        UserError: a package is not installed, or the network uses an operation that is not translated.

    References:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        2018. Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015 (the network is its own
        teacher).
    """
    require_packages("onnx")
    network = computing_in(network, "float32")
    ranges = layer_ranges(network, image, form, pixels, tolerance=TOLERANCE)
    state = train(network, ranges, batches, report=report)
    variables = {**network.variables, "params": state.params, RANGES: scaled_ranges(ranges, state.factors)}
    tuned = network._replace(variables=jax.device_get(variables))
    separate, tuned, any_batch = translate(tuned, image, form)
    model = quantise(separate, {}, quantised_convolutions(separate))
    converted = served_onnx(model, tuned, form, any_batch=any_batch)
    return Quantised(converted, ranges.candidate_count, ranges.quantised_count)


def train(network: Trained, ranges: LayerRanges, batches: Sequence[np.ndarray], *, report: Report = _silent) -> State:
    """Trains parameters and ranges for one step per batch, as `tuned_network` says."""
    fixed = jax.tree.map(jnp.asarray, network.variables)
    start = State(fixed["params"], {name: jnp.zeros_like(limits) for name, limits in ranges.limits.items()})
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
        variables = {**fixed, "params": state.params, RANGES: scaled_ranges(ranges, state.factors)}
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

    optimizer_state = optimizer.init(vector)
    # Each task's loss is normalised by its first value. The same compiled step computes it, because compiling another
    # program takes longer than some steps.
    zero_weights = jnp.zeros(len(network.names))
    first_losses = step(vector, optimizer_state, fixed, jnp.asarray(batches[0]), zero_weights)[-1]
    weights = 1 / jnp.maximum(len(network.names) * first_losses, jnp.finfo(jnp.float32).tiny)
    for number, image in enumerate(pipeline.prefetch(batches, threads=1), start=1):
        vector, optimizer_state, task_losses = step(vector, optimizer_state, fixed, jnp.asarray(image), weights)
        report(number, float(weights @ task_losses))
    return unravel(vector)


def _optimizer(steps: int) -> optax.GradientTransformation:
    """Adam with a relative rate that rises to 1 and decays to 0."""
    warm_steps = max(int(WARM_SHARE * steps), 1)
    schedule = optax.warmup_cosine_decay_schedule(1 / warm_steps, 1.0, warm_steps, max(steps, warm_steps + 1))
    return optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(schedule))


def scaled_ranges(ranges: LayerRanges, factors: Mapping[str, Array]) -> PyTree:
    """Returns the ranges by layer and pass, multiplied by the exponentials of their factors."""
    return ranges.by_layer({name: limits * jnp.exp(factors[name]) for name, limits in ranges.limits.items()})


def _raw(network: Trained, variables: PyTree, image: Any) -> dict[str, Array]:
    return multi_task.eval_raw(network.setup.model, variables, image, tasks=network.names)[0]
