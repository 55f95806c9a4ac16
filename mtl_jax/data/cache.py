"""Keeps decoded samples in memory, up to a stated number of bytes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtl_jax.data.sources.base import Reading, Sample, Source, reading_of


class CachedSource:
    """A source that decodes each sample once, as long as they fit; safe to read from several threads.

    When the next sample would exceed the limit it is not kept, and is decoded again each time. Kept arrays are
    read-only.

    Args:
        source: what to read.
        limit_bytes: of decoded pixels and labels; 0 keeps nothing.
    """

    def __init__(self, source: Source, *, limit_bytes: int) -> None:
        self.source = source
        self.limit_bytes = limit_bytes
        self.class_names: Mapping[str, tuple[str, ...]] = source.class_names
        self.held_bytes = 0
        self.decodes = 0
        self._samples: dict[int, Sample] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:  # to another process, which begins with an empty cache
        return _rebuilt, (self.source, self.limit_bytes)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def reading(self) -> Reading:
        """Counts and warnings of reading the source."""
        return reading_of(self.source)

    def __getitem__(self, index: int) -> Sample:
        cached = self._samples.get(index)
        if cached is not None:
            return cached
        sample = self.source[index]
        arrays = [
            sample["image"],
            *(array for fields in sample["labels"].values() for array in fields.values()),
        ]
        size = sum(array.nbytes for array in arrays)
        with self._lock:
            self.decodes += 1
            if index not in self._samples and self.held_bytes + size <= self.limit_bytes:
                _protect(arrays)
                self._samples[index] = sample
                self.held_bytes += size
        return sample


def _rebuilt(source: Source, limit_bytes: int) -> CachedSource:
    return CachedSource(source, limit_bytes=limit_bytes)


def cached(source: Source, limit_bytes: int) -> CachedSource:
    """Returns the source with a cache; one that has a cache already stays as it is."""
    return source if isinstance(source, CachedSource) else CachedSource(source, limit_bytes=limit_bytes)


def _protect(arrays: list[np.ndarray]) -> None:
    for array in arrays:
        array.setflags(write=False)
