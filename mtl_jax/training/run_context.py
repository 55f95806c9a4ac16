"""Run context: objects that every stage of one run shares."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mtl_jax.config.run_settings import RunSettings
from mtl_jax.evaluation.evaluate import Predict
from mtl_jax.experiment import Experiment
from mtl_jax.runtime.preemption import Preemption
from mtl_jax.workdir.metrics_log import MetricsLog


class Run(NamedTuple):
    """Context shared by all stages of a run."""

    config: RunSettings
    setup: Experiment
    predict: Predict
    workdir: Path  # shared by all processes of the run, and read by all
    written: Path  # where this process writes: the work directory, or a place of its own that is thrown away
    log: MetricsLog
    preemption: Preemption
    data: Mapping[str, Any]  # stream -> split -> number of images and digest, as a checkpoint keeps them
