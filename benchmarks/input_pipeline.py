"""How fast the input pipeline delivers, alone on the machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks import flagship
from mtl_jax import experiment
from mtl_jax.data import pipeline
from mtl_jax.data.cache import cached

LATER_EPOCHS = 3


def measure(data_root: Path) -> list[dict[str, Any]]:
    """Returns images per second of each stream of the flagship, first epoch and later ones, and decodes."""
    setup, rows = flagship.build(data_root), []
    for stream, settings in setup.streams.items():
        source = cached(experiment.source(setup, stream, training=True), setup.cache_bytes)
        batches = experiment.train_batches(setup, stream, source, seed=0)
        steps, size = pipeline.steps_per_epoch(len(source), settings.batch_size), settings.batch_size
        iterator = pipeline.prefetch(batches, threads=2)
        first = _seconds(iterator, steps)
        decodes = source.decodes
        later_seconds = _seconds(iterator, steps * LATER_EPOCHS) / LATER_EPOCHS
        rows.append(
            {
                "stream": stream,
                "image_size": experiment.train_image_size(setup, stream),
                "first_epoch_images_per_second": steps * size / first,
                "later_images_per_second": steps * size / later_seconds,
                "decodes_first_epoch": decodes,
                "decodes_later": source.decodes - decodes,
                "cache_mb": source.held_bytes / 1e6,
            }
        )
    return rows


def _seconds(iterator: Any, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        next(iterator)
    return time.perf_counter() - start
