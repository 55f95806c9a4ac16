"""Evaluation of a checkpoint: its tasks on validation data, its parameters and its latency."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtl_jax import experiment
from mtl_jax import tasks as tasks_lib
from mtl_jax.errors import UserError
from mtl_jax.evaluation import evaluate
from mtl_jax.models import multi_task
from mtl_jax.workdir import data_changes, data_record, files, lineage, trained


def run(weights: str | Path, *, tasks: str = "all", data_root: str = "", flip: bool = False) -> dict[str, Any]:
    """Evaluates a checkpoint.

    Args:
        weights: a work directory (its last stage) or one stage's checkpoint.
        tasks: "all" (that the stage had learnt), or names separated by commas.
        data_root: folder of datasets; "" means the one that the run recorded, or else $MTL_JAX_DATA, or else ./data.
        flip: also run every mirrored image, and average both.

    Returns:
        {"checkpoint", "stage", "tasks": {task: {figure: value}}, "added": {"task/stage": the same of the classes that a
        stage has added to a task}, "measured_on": {task: what the figures are of,
        with "as_trained": whether these are the images that training validated with, None where that is not known},
        "other_streams": {task: {stream: {figure: value}}} where several streams of the order label a task,
        "lineage": of the work directory, None where it grew from no other, "params", "latency_ms",
        "latency_image_size"}.

    Raises:
        UserError: an unknown task, or a dataset that is not there.
        CheckpointError: no checkpoint at `weights`.
    """
    network = trained.load(weights, tasks=tasks, data_root=Path(data_root).expanduser() if data_root else None)
    setup, names = network.setup, network.names
    predict = evaluate.make_predict(setup.model, setup.tasks, flip=flip)
    metrics = evaluate.measured(setup, predict, network.variables, names)
    first = {name: experiment.labelling_streams(setup, name)[0] for name in names}
    other_streams: dict[str, dict[str, dict[str, float]]] = {name: {} for name in names}  # by task and stream
    for stream in setup.used_streams:
        stream_tasks = experiment.stream_tasks(setup, stream)
        requested = {name: task for name, task in stream_tasks.items() if name in names and first[name] != stream}
        if requested:
            batches = experiment.eval_batches(setup, stream)
            for name, figures in evaluate.evaluate(predict, network.variables, batches, requested).items():
                other_streams[name][stream] = figures
    added = evaluate.measured_additions(setup, predict, network.variables, names, stages=network.stages)
    as_trained = _as_trained(network, tuple(dict.fromkeys(first.values())))
    size = network.config.contract.latency_image_size
    return {
        "checkpoint": str(network.path),
        "stage": network.stage,
        "tasks": {name: metrics[name].compute() for name in names},
        "added": {name: metric.compute() for name, metric in added.items()},
        "measured_on": {
            name: experiment.validation_data(setup, first[name]) | {"as_trained": as_trained[first[name]]}
            for name in names
        },
        "lineage": lineage.of_checkpoint(network.path),
        "other_streams": {name: figures for name, figures in other_streams.items() if figures},
        "params": sum(multi_task.parameter_count(network.variables["params"]).values()),
        "latency_ms": evaluate.latency_ms(predict, network.variables, names, image_size=size),
        "latency_image_size": size,
    }


def _as_trained(network: trained.Trained, streams: Sequence[str]) -> dict[str, bool | None]:
    """Whether the validation images of streams are those that training saw; None where it kept nothing of them."""
    recorded_streams = [stream for stream in streams if "val" in network.data.get(stream, {})]
    most = network.config.survey_images
    digests_now = data_record.validation_digests(
        network.setup, recorded_streams, most=most, cache=data_record.cache_folder()
    )
    changes = data_changes.changed_streams(network.data, digests_now, "val")
    return {stream: stream not in changes if stream in recorded_streams else None for stream in streams}


def show(figures: dict[str, Any]) -> None:
    """Prints the figures as a table, and below it what they were measured on."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{figures['checkpoint']} after stage {figures['stage']}", title_justify="left")
    table.add_column("task")
    table.add_column("figure")
    table.add_column("value", justify="right")
    rows = [*figures["tasks"].items(), *figures["added"].items()]
    rows += [
        (f"{task} ({stream})", values)
        for task, stream_figures in figures["other_streams"].items()
        for stream, values in stream_figures.items()
    ]
    for label, values in rows:
        for name, value in values.items():
            if "/" not in name:  # per-class figures are in the JSON
                table.add_row(label, tasks_lib.title(name), f"{value:.4f}")
    table.add_row("", "parameters", f"{figures['params']:,}")
    size = figures["latency_image_size"]
    table.add_row("", f"latency, 1 image of {size} px, ms", f"{figures['latency_ms']:.1f}")
    Console().print(table)
    if figures["lineage"]:
        print(lineage.sentence(figures["lineage"]))
    for task, data in figures["measured_on"].items():
        print(
            f"{task}: {data['images']} images of stream {data['stream']} (split {data['split']} of {data['source']}, "
            f"{data['shown']}), data root {data['data_root']}"
        )
    if other_data := [task for task, data in figures["measured_on"].items() if data["as_trained"] is False]:
        print(
            f"warning: {', '.join(other_data)}: not the images that training validated with: its figures are of others"
        )


def require_writable(path: Path) -> None:
    """Checks, before anything takes long, that a file can be written.

    Raises:
        UserError: its folder is missing or cannot be written to, or it is a folder itself.
    """
    reason = ""
    if not path.parent.is_dir():
        reason = f"there is no folder {path.parent}"
    elif path.is_dir():
        reason = "it is a folder"
    elif not os.access(path.parent, os.W_OK):
        reason = f"{path.parent} is read-only"
    if reason:
        raise UserError(f"{path} cannot be written ({reason}); name another file with --json")


def write(figures: dict[str, Any], path: Path) -> None:
    """Writes the figures as JSON.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        files.write_json(path, figures)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another file with --json") from error
