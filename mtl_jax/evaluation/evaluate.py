"""Measures a network: every task's metric on validation data at original resolution, and the time of one image."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from mtl_jax.evaluation import flip as flip_lib
from mtl_jax.evaluation.contract_table import addition
from mtl_jax.kernels import cpu_kernels
from mtl_jax.models import multi_task
from mtl_jax.tasks.base import Metric, Task

if TYPE_CHECKING:
    from mtl_jax import experiment

Predict = Callable[..., dict[str, dict[str, Array]]]


def make_predict(model: Any, tasks: Mapping[str, Task], *, flip: bool = False) -> Predict:
    """Returns jitted `(variables, image, names) -> {task: predictions}`; compiled once per image shape and `names`.

    Args:
        model: from `multi_task.build`.
        tasks: every task of the model.
        flip: also run every mirrored image, and average both.
    """

    @functools.partial(jax.jit, static_argnames="names")
    def predict(
        variables: PyTree, image: Float[Array, "batch height width 3"], names: tuple[str, ...]
    ) -> dict[str, dict[str, Array]]:
        if flip:
            requested = {name: tasks[name] for name in names}
            outputs = flip_lib.outputs(model, variables, image, requested)
            return {name: task.decode(outputs[name]) for name, task in requested.items()}
        raw, _ = multi_task.eval_raw(model, variables, image, tasks=names)
        height, width = image.shape[1:3]
        return {name: tasks[name].predictions(raw[name], (height, width)) for name in names}

    return predict


def evaluate(
    predict: Predict, variables: PyTree, batches: Iterable[Any], tasks: Mapping[str, Task]
) -> dict[str, dict[str, float]]:
    """Runs the network over a validation stream.

    Args:
        predict: from `make_predict`.
        variables: of the network.
        batches: `data.pipeline.EvalBatch`es; the padding of the last one is not counted.
        tasks: the tasks that the stream labels.

    Returns:
        Task -> figure by name.
    """
    return {name: metric.compute() for name, metric in filled(predict, variables, batches, tasks).items()}


def measured(
    setup: experiment.Experiment,
    predict: Predict,
    variables: PyTree,
    tasks: Iterable[str],
    *,
    requested: Iterable[str] | None = None,
) -> dict[str, Metric]:
    """Runs the network over the validation images of every stream that tasks are measured on.

    Args:
        setup: of the experiment.
        predict: from `make_predict`.
        variables: of the network.
        tasks: names of those that are computed, together where a stream labels several.
        requested: names of those whose streams are looked at; all if None.

    Returns:
        Task -> its metric.
    """
    names, metrics_by_task = tuple(tasks), dict[str, Metric]()
    needed = set(names if requested is None else requested)
    from mtl_jax import experiment  # reads images, with libraries that a network alone does not need

    for stream, stream_tasks in experiment.measured_streams(setup, names).items():
        if needed & set(stream_tasks):
            batches = experiment.eval_batches(setup, stream)
            metrics_by_task |= filled(predict, variables, batches, stream_tasks, before=metrics_by_task)
    return metrics_by_task


def measured_additions(
    setup: experiment.Experiment,
    predict: Predict,
    variables: PyTree,
    tasks: Iterable[str],
    *,
    stages: Iterable[str],
) -> dict[str, Metric]:
    """Measures classes that tasks have got later, on the validation data that came with them.

    Labels of other classes in it do not count.

    Args:
        setup: of the experiment.
        predict: from `make_predict`.
        variables: of the network.
        tasks: names of those that are measured.
        stages: that are finished.

    Returns:
        `contract_table.addition` -> the metric.
    """
    from mtl_jax import experiment  # as above

    metrics: dict[str, Metric] = {}
    names = tuple(tasks)
    added_classes = [(task, stage) for stage in stages for task in names if stage in setup.tasks[task].later_classes]
    for task, stage in added_classes:
        name = addition(task, stage)
        requested = {task: setup.tasks[task]}
        for stream in experiment.streams_of_addition(setup, task, stage):
            batches = experiment.eval_batches(setup, stream)
            observed = {task: metrics[name] if name in metrics else setup.tasks[task].metric_of(stage)}
            metrics[name] = filled(predict, variables, batches, requested, before=observed)[task]
    return metrics


def filled(
    predict: Predict,
    variables: PyTree,
    batches: Iterable[Any],
    tasks: Mapping[str, Task],
    *,
    before: Mapping[str, Metric] = MappingProxyType({}),
) -> dict[str, Metric]:
    """Returns, by task, the metric that has seen the network's predictions for a validation stream.

    Args:
        predict: as for `evaluate`.
        variables: as for `evaluate`.
        batches: as for `evaluate`.
        tasks: as for `evaluate`.
        before: task -> a metric that has seen other streams, and goes on with this one.
    """
    metrics = {name: before[name] if name in before else task.new_metric() for name, task in tasks.items()}
    for batch in batches:
        predictions = jax.device_get(predict(variables, batch.image, names=tuple(tasks)))
        for index, (target, geometry) in enumerate(zip(batch.targets, batch.geometries, strict=True)):
            for name, metric in metrics.items():
                metric.update(example(predictions[name], index), target[name], geometry)
    return metrics


def example(predictions: Mapping[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    """Returns one example's predictions of a batch."""
    return {field: np.asarray(value[index]) for field, value in predictions.items()}


def gigaflops(model: Any, variables: PyTree, tasks: Iterable[str], *, image_size: int) -> float | None:
    """Returns the floating-point operations of one image through the network, 1e9; a multiply-add is two of them.

    XLA counts them, of the operations that the network is written in. None where it does not.

    Args:
        model: from `multi_task.build`.
        variables: of the network; only their shapes matter.
        tasks: names of the requested tasks; their outputs are not decoded.
        image_size: px, both sides.
    """
    names = tuple(tasks)
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    with cpu_kernels.left_out():
        forward = jax.jit(lambda variables, image: multi_task.eval_raw(model, variables, image, tasks=names)[0])
        cost: Any = forward.lower(variables, image).cost_analysis()
    return cost["flops"] / 1e9 if cost and "flops" in cost else None


def latency_ms(
    predict: Predict, variables: PyTree, tasks: Iterable[str], *, image_size: int, repeats: int = 10
) -> float:
    """Returns the median time of one image, all tasks, decoding included, after the compiling call, in ms.

    Args:
        predict: from `make_predict`.
        variables: of the network.
        tasks: names of the requested tasks.
        image_size: px, both sides.
        repeats: timed calls.
    """
    image = jnp.full((1, image_size, image_size, 3), 0.5, jnp.float32)
    names = tuple(tasks)
    jax.block_until_ready(predict(variables, image, names=names))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(predict(variables, image, names=names))
        seconds.append(time.perf_counter() - start)
    return 1e3 * float(np.median(seconds))
