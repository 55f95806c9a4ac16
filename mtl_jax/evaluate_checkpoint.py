"""What `eval.py` does: a checkpoint's tasks on validation data, its parameters and its latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtl_jax import config as config_lib
from mtl_jax import contract, evaluate, experiment, trained
from mtl_jax.errors import UserError
from mtl_jax.models import multi_task


def run(weights: Path, *, tasks: str = "all", data_root: str = "") -> dict[str, Any]:
    """Evaluates a checkpoint.

    Args:
        weights: a work directory (its last stage) or one stage's checkpoint.
        tasks: "all" (that the stage had learnt), or names separated by commas.
        data_root: folder of datasets; "" means $MTL_JAX_DATA, or else ./data.

    Returns:
        {"checkpoint", "stage", "tasks": {task: {figure: value}}, "params", "latency_ms", "latency_image_size"}.

    Raises:
        UserError: an unknown task, or a dataset that is not there.
        CheckpointError: no checkpoint at `weights`.
    """
    root = config_lib.data_root(ConfigDict({"data_root": data_root}))
    network = trained.load(weights, tasks=tasks, data_root=root)
    predict = evaluate.make_predict(network.parts.model, network.parts.tasks)
    figures: dict[str, dict[str, float]] = {}
    for stream in network.config["streams"]:
        asked = {
            name: task
            for name, task in experiment.stream_tasks(network.parts, stream).items()
            if name in network.names and name not in figures
        }
        if asked:
            batches = experiment.eval_batches(network.parts, stream)
            figures |= evaluate.evaluate(predict, network.variables, batches, asked)
    size = network.config["contract"]["latency_image_size"]
    return {
        "checkpoint": str(network.path),
        "stage": network.stage,
        "tasks": {name: figures[name] for name in network.names},
        "params": sum(multi_task.parameter_count(network.variables["params"]).values()),
        "latency_ms": evaluate.latency_ms(predict, network.variables, network.names, image_size=size),
        "latency_image_size": size,
    }


TITLES = {"map_50_95": "mAP 50-95", "map_50": "mAP 50", "miou": "mIoU", "top1": "Top-1", "top5": "Top-5"}


def show(figures: dict[str, Any]) -> None:
    """Prints the figures as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{figures['checkpoint']} after stage {figures['stage']}", title_justify="left")
    table.add_column("task")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for task, values in figures["tasks"].items():
        for name, value in values.items():
            if "/" not in name:  # per-class figures are in the JSON
                table.add_row(task, TITLES.get(name, name), f"{value:.4f}")
    table.add_row("", "parameters", f"{figures['params']:,}")
    size = figures["latency_image_size"]
    table.add_row("", f"latency, 1 image of {size} px, ms", f"{figures['latency_ms']:.1f}")
    Console().print(table)


def write(figures: dict[str, Any], path: Path) -> None:
    """Writes the figures as JSON.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        contract.write_json(path, figures)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another file with --json") from error
