"""The library's own step and prediction, as its training and evaluation run them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from benchmarks import problem as problem_lib
from benchmarks.problem import Problem
from mtl_jax import tasks
from mtl_jax.config.stage_settings import StageSettings
from mtl_jax.evaluation import evaluate
from mtl_jax.models import depthwise, multi_task
from mtl_jax.runtime import compilation, devices
from mtl_jax.training import optimizer, task_balancing, train_step
from mtl_jax.training.losses import Objective, StepSpec


class Computation(NamedTuple):
    """Something to time."""

    compute: Callable[[], Any]  # once, returning when it is done; not yet warm
    memory_mb: float = float("nan")  # of its program: arguments, results and everything between, by XLA's plan
    program: str = ""  # of a step, as XLA compiled it


def build(problem: Problem) -> Computation:
    """Makes the computation of a problem, and compiles a step."""
    records = tasks.build(problem_lib.task_settings(problem))
    model = multi_task.build({"backbone": problem.backbone, "compute_dtype": problem.dtype}, records)
    variables = multi_task.init_variables(model, key=jax.random.key(problem.seed), image_size=problem.image_size)
    image = problem_lib.images(problem)
    names = tuple(records)
    if problem.what == "infer":
        predict = evaluate.make_predict(model, records)
        device_inputs = jax.device_put((variables, image))

        def infer() -> Any:
            with depthwise.traced_in(problem.depthwise):
                return jax.block_until_ready(predict(*device_inputs, names=names))

        return Computation(infer)
    with depthwise.traced_in(problem.depthwise):
        return _step(problem, records, model, variables, image)


def device_peak_mb() -> float:
    """Returns the most memory that was in use on the first accelerator, or NaN where there is none."""
    if jax.default_backend() == "cpu":
        return float("nan")
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", float("nan")) / 1e6


def _step(problem: Problem, records: Any, model: Any, variables: Any, image: Any) -> Computation:
    names, labels = tuple(records), problem_lib.labels(problem)
    streams = {f"stream_{name}": (name,) for name in names} if problem.disjoint else {"all": names}
    batch = {
        stream: {"image": image, "labels": {name: labels[name] for name in stream_tasks}}
        for stream, stream_tasks in streams.items()
    }
    schedule = optimizer.learning_rate_schedule(
        "cosine", learning_rate=problem_lib.LEARNING_RATE, total_steps=1000, warmup_fraction=0.05
    )
    tx = optimizer.build(
        "adamw",
        learning_rate=schedule,
        weight_decay=problem_lib.WEIGHT_DECAY,
        momentum=0.9,
        rates={"backbone": 0.2},
    )
    settings = StageSettings(tuple(streams), balance=problem.balance, gradient_space=problem.gradient_space)
    method = task_balancing.method(settings, tasks=len(names), location="the benchmark")
    state = train_step.init_state(
        variables["params"],
        variables["batch_stats"],
        balance=method,
        tx=tx,
        ema=False,
        tasks=names,
        trained_tasks=names,
        key=jax.random.key(problem.seed),
    )
    objective = Objective(
        streams=streams,
        groups=tuple((stream,) for stream in streams),
        stream_weights=dict.fromkeys(streams, 1.0),
        loss_weights={},
    )
    backward = task_balancing.backward(settings, method, objective, features_are_shared=True, location="the benchmark")
    step_spec = StepSpec(model, records, objective, method, backward)
    step: Any = train_step.make_train_step(step_spec, tx=tx, schedule=schedule, clip_norm=problem_lib.CLIP_NORM)
    memory: dict[str, Any] = {}
    batch = devices.place(batch, dict.fromkeys(batch, problem.batch_size))
    holder = {"state": jax.device_put(state, devices.everywhere())}
    compiled = compilation.ahead_of_time(step, holder["state"], memory, batch, donate_argnums=0)

    def run() -> Any:
        holder["state"], metrics = compiled(holder["state"], memory, batch)
        return jax.device_get(metrics)

    plan = compiled.memory_analysis()
    bytes_held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return Computation(run, (bytes_held + plan.temp_size_in_bytes) / 1e6, compiled.as_text())
