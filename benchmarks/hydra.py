"""One body with k heads against k networks of one task each: frames per second, parameters and memory."""

from __future__ import annotations

import statistics
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from benchmarks.turns import timed
from mtl_jax import tasks
from mtl_jax.models import multi_task

HEADS = (1, 2, 3, 8)
WARM_UP = 3

Rows = list[dict[str, Any]]


def measure(*, image_size: int, repeats: int) -> Rows:
    """Measures one image through each: bodies in turns, then stacked networks, which leave nothing in the caches.

    Args:
        image_size: px, both sides.
        repeats: timed passes of each.

    Returns:
        A row for each number of heads.
    """
    image = jnp.full((1, image_size, image_size, 3), 0.5)
    names = [tuple(f"task_{number}" for number in range(heads)) for heads in HEADS]
    programs = {
        "body": [_program([group], image) for group in names],
        "stacked": [_program([(name,) for name in group], image) for group in names],
    }
    rows: Rows = [{"heads": heads} for heads in HEADS]
    for label, group in programs.items():
        seconds = [[timed(program["run"]) for program in group] for _ in range(repeats)]
        for row, program, times in zip(rows, group, zip(*seconds, strict=True), strict=True):
            middle = statistics.median(times)
            row |= {f"{label}_ms": 1e3 * middle, f"{label}_frames_per_second": 1 / middle}
            row |= {f"{label}_{name}": program[name] for name in ("params", "memory_mb")}
    for row in rows:
        row["speedup"] = row["stacked_ms"] / row["body_ms"]
        row["times_one_head"] = row["body_ms"] / rows[0]["body_ms"]
    return rows


def _program(networks: list[tuple[str, ...]], image: Array) -> dict[str, Any]:
    """All networks' outputs for one image, compiled as one program: each network has the tasks named."""
    models, variables = [], []
    for number, names in enumerate(networks):
        records = tasks.build({name: {"kind": "classification", "classes": ("a", "b", "c")} for name in names})
        models.append(multi_task.build({}, records))
        variables.append(multi_task.init_variables(models[-1], key=jax.random.key(number)))

    def outputs(variables: list[Any], image: Array) -> list[dict[str, Array]]:
        networks_with_variables = zip(models, variables, networks, strict=True)
        return [
            multi_task.apply_eval(model, variables_of_one, image, tasks=names)
            for model, variables_of_one, names in networks_with_variables
        ]

    compiled: Any = jax.jit(outputs).lower(variables, image).compile()
    for _ in range(WARM_UP):
        jax.block_until_ready(compiled(variables, image))
    plan = compiled.memory_analysis()
    bytes_held = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return {
        "run": lambda: jax.block_until_ready(compiled(variables, image)),
        "params": sum(
            sum(multi_task.parameter_count(variables_of_one["params"]).values()) for variables_of_one in variables
        ),
        "memory_mb": bytes_held / 1e6,
    }
