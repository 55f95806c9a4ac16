"""What sharing saves: time and parameters of the flagship, from everything shared to a branch right after the stem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from mtl_jax import evaluate, experiment
from mtl_jax.benchmarks import flagship
from mtl_jax.models import multi_task
from mtl_jax.models.sharing import SHARE_CHOICES


def measure(data_root: Path, *, image_size: int, repeats: int) -> list[dict[str, Any]]:
    """Returns, for each wiring, its parameters and the ms of one image: each task alone, and all of them.

    The wirings take turns, so that a busy minute of the machine falls on all of them. The ratio is that of all tasks to
    the slowest task alone, which is what one single-task network of the same layers takes.
    """
    networks = {}
    for share in SHARE_CHOICES:
        parts = flagship.build(data_root, share_until=share)
        variables = experiment.init_variables(parts, key=jax.random.key(0), pretrained_path="")
        networks[share] = (evaluate.make_predict(parts.model, parts.tasks), variables, tuple(parts.tasks))
    asked = {"all": networks["all"][2], **{task: (task,) for task in networks["all"][2]}}
    timings: dict[tuple[str, str], list[float]] = {}
    for turn in range(repeats + 1):
        for share, (predict, variables, _) in networks.items():
            for name, tasks in asked.items():
                milliseconds = evaluate.latency_ms(predict, variables, tasks, image_size=image_size, repeats=3)
                if turn:  # the first one compiles
                    timings.setdefault((share, name), []).append(milliseconds)
    rows = []
    for share, (_, variables, tasks) in networks.items():
        medians = {name: float(np.median(timings[share, name])) for name in asked}
        rows.append(
            {
                "share_until": share,
                "params": sum(multi_task.parameter_count(variables["params"]).values()),
                **{f"{name}_ms": value for name, value in medians.items()},
                "ratio": medians["all"] / max(medians[task] for task in tasks),
            }
        )
    return rows
