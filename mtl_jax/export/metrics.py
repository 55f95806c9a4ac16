"""Metrics of an exported file on validation images, at the input size of the file."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from mtl_jax.evaluation import evaluate
from mtl_jax.evaluation.contract_table import addition
from mtl_jax.experiment import View
from mtl_jax.export.formats import Run
from mtl_jax.export.network import OUTPUTS
from mtl_jax.workdir.trained import Trained


def main_metrics(network: Trained, check: Run, view: View) -> dict[str, float]:
    """Returns the main metric of each task, and of its added classes (`addition`), from a file's raw outputs.

    Args:
        network: exported network.
        check: function of the file, with raw outputs.
        view: input size and crop.

    Raises:
        UserError: a dataset is missing.
    """
    decode = jax.jit(lambda outputs: {name: network.tasks[name].decode(raw) for name, raw in outputs.items()})

    def predict(variables: None, image: np.ndarray, names: tuple[str, ...]) -> Any:
        del variables
        outputs = check(np.asarray(image))
        return decode({name: outputs[f"{name}/{OUTPUTS}"] for name in names})

    return metrics_of_predictions(network, predict, view)


def metrics_of_predictions(network: Trained, predict: evaluate.Predict, view: View) -> dict[str, float]:
    """Returns the main metric of each task, and of its added classes, from predictions for all validation images.

    Args:
        network: exported network.
        predict: `(None, images, names) -> {task: predictions}`, as of `evaluate.make_predict`.
        view: input size and crop.

    Raises:
        UserError: a dataset is missing.
    """
    settings = {"image_size": view.image_size, "crop": view.crop}
    streams = {name: dataclasses.replace(stream, **settings) for name, stream in network.setup.streams.items()}
    setup = dataclasses.replace(network.setup, streams=streams)
    of_tasks = evaluate.measured(setup, predict, None, network.names)
    of_added = evaluate.measured_additions(setup, predict, None, network.names, stages=network.stages)
    measured = {}
    for name in network.names:
        entries = [addition(name, stage) for stage in network.tasks[name].later_classes]
        metrics = {name: of_tasks[name], **{entry: of_added[entry] for entry in entries if entry in of_added}}
        measured |= {entry: metric.compute()[network.tasks[name].main_metric] for entry, metric in metrics.items()}
    return measured
