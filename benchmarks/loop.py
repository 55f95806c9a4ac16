"""Overhead of the training loop: input, logging, checkpoints."""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from benchmarks import flagship
from benchmarks.turns import timed
from mtl_jax import experiment
from mtl_jax.config import load_page, resolve
from mtl_jax.continual import memory, reading
from mtl_jax.data import pipeline
from mtl_jax.runtime import devices
from mtl_jax.runtime.progress import SPEED_WINDOW_STEPS
from mtl_jax.training import stage_plan, stage_setup, stage_steps, train_loop
from mtl_jax.training.stage_plan import StageResult
from mtl_jax.workdir import checkpoints

STAGE = "seg"  # the first of the flagship's: nothing is kept yet
WARM_UP = 3


def measure(data_root: Path, *, steps: int) -> list[dict[str, Any]]:
    """Returns images per second of the first stage's step alone, with its input, and in the loop; a checkpoint's time.

    Args:
        data_root: with the flagship's data.
        steps: to time each way.
    """
    config = load_page(flagship.PAGE).get_config()
    config.update({"order": (STAGE,), "pretrained": "", "checkpoint_every_seconds": 1e9})
    config.stages[STAGE].eval_every_epochs = 0.0
    settings = reading.complete(resolve(config))
    setup = experiment.build(settings, data_root=data_root)
    variables = experiment.init_variables(setup, key=jax.random.key(0), pretrained_path="", offline=True)
    start_result = StageResult(variables, memory.nothing(), stages=[], train_seconds=0.0, step=0)
    stage = stage_plan.plan(settings, setup, 0, start_result)
    images, (stream,) = sum(stage.batch_sizes.values()), stage.data
    state, steps_by_start, method_inputs = stage_setup.prepare(setup, stage, start_result, seed=0)
    state, method_inputs = devices.copy_everywhere((state, method_inputs))
    batches = _device_batches(
        pipeline.prefetch(stage.data[stream], threads=settings.loader_threads), stream, stage.batch_sizes
    )
    batch = next(batches)
    holder = {"state": state}
    program = stage_steps.compiled(steps_by_start[0], state, method_inputs, batch)

    def step(batch: Any) -> None:
        holder["state"], metrics = program(holder["state"], method_inputs, batch)
        jax.device_get(metrics)

    for _ in range(stage.steps_per_epoch):
        next(batches)  # the first epoch decodes every file; the later ones find the images in memory
    step_seconds = _seconds(lambda: step(batch), steps)
    fed = _seconds(lambda: step(next(batches)), steps)
    input_seconds = _seconds(lambda: jax.block_until_ready(next(batches)), steps)
    with tempfile.TemporaryDirectory() as folder:
        save_seconds = timed(lambda: checkpoints.save_step(Path(folder), 1, {"state": holder["state"]}, {}, keep=1))
    settled = stage.steps_per_epoch + SPEED_WINDOW_STEPS  # a speed before would be of steps that waited for files too
    epochs = (settled + steps) / stage.steps_per_epoch
    stages = {**settings.stages, STAGE: dataclasses.replace(settings.stages[STAGE], epochs=epochs)}
    looping = dataclasses.replace(settings, stages=stages, data_root=str(data_root))
    looped = _in_the_loop(looping, images, after=settled)
    step_seconds = (step_seconds + _seconds(lambda: step(batch), steps)) / 2  # a shared host changes its speed
    figures = {"step": step_seconds, "step and input": fed, "loop": looped, "input": input_seconds}
    rows = [
        {"what": name, "images_per_second": images / seconds, "of_step": step_seconds / seconds}
        for name, seconds in figures.items()
    ]
    return [*rows, {"what": "checkpoint", "seconds": save_seconds}]


def _device_batches(batches: Any, stream: str, sizes: dict[str, int]) -> Iterator[Any]:
    for batch in batches:
        yield devices.place({stream: pipeline.without_ids(batch)}, sizes)


def _seconds(run: Callable[[], Any], count: int) -> float:
    """Of one run in the mean, as a loop's speed is."""
    for _ in range(WARM_UP):
        run()
    start = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - start) / count


def _in_the_loop(settings: Any, images: int, *, after: int) -> float:
    """Seconds of a step in the median, as a run logs them after so many steps."""
    with tempfile.TemporaryDirectory() as workdir:
        train_loop.train_and_evaluate(settings, workdir)
        lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["value"] for line in lines if line["name"] == "images_per_second" and line["step"] > after]
    return images / statistics.median(speeds)
