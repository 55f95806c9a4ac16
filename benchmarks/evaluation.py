"""How long an evaluation takes, against the network's share in it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax

from benchmarks import flagship
from mtl_jax import experiment
from mtl_jax.evaluation import evaluate


def measure(data_root: Path) -> list[dict[str, Any]]:
    """Returns the seconds of each stream's evaluation, decoded images in memory, and of inference alone."""
    setup = flagship.build(data_root)
    variables = experiment.init_variables(setup, key=jax.random.key(0), pretrained_path="")
    predict = evaluate.make_predict(setup.model, setup.tasks)
    rows = []
    for stream in setup.streams:
        tasks, batches = experiment.stream_tasks(setup, stream), experiment.eval_batches(setup, stream)
        evaluate.evaluate(predict, variables, batches, tasks)  # compiles, and fills the cache
        start = time.perf_counter()
        evaluate.evaluate(predict, variables, batches, tasks)
        total_seconds = time.perf_counter() - start
        device_images = jax.device_put([batch.image for batch in batches])
        start = time.perf_counter()
        for image in device_images:
            jax.device_get(predict(variables, image, names=tuple(tasks)))
        compute_seconds = time.perf_counter() - start
        images = sum(len(batch.targets) for batch in batches)
        rows.append(
            {"stream": stream, "images": images, "seconds": total_seconds, "inference_seconds": compute_seconds}
        )
    total, inference = (sum(row[name] for row in rows) for name in ("seconds", "inference_seconds"))
    rows.append({"stream": "all", "seconds": total, "inference_seconds": inference, "ratio": total / inference})
    return rows
