"""Looks at every sample of a split once, in parallel, and keeps what there is to know about it."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from mtl_jax.data import opened, survey_cache
from mtl_jax.data.facts import SampleFacts, facts_of
from mtl_jax.data.leakage import WithOrigins
from mtl_jax.data.opened import Opened
from mtl_jax.data.sources.base import Reading, Source, reading_of
from mtl_jax.errors import UserError

MAX_THREADS = 16
CHUNK = 256  # samples that are in work at a time
WORTH_KEEPING_S = 0.2  # what was seen faster is not worth a file

OnProgress = Callable[[int, int], None]  # (samples looked at, in all)


class Survey(NamedTuple):
    """Summary of one split at the time of the survey."""

    images: int  # of the whole split
    looked_at: int
    samples: tuple[SampleFacts, ...]  # those looked at that can be read, in the split's order
    errors: tuple[str, ...]  # one line for each that cannot
    reading: Reading  # what the source says that it merged, changed or left out

    @property
    def complete(self) -> bool:
        """Whether every image was looked at."""
        return self.looked_at == self.images

    @property
    def grey_bits(self) -> int | None:
        """By how many bits greyscale of 16-bit files is scaled; None where no such file was met."""
        return max((sample.grey_bits for sample in self.samples if sample.grey_bits), default=None)

    def digest(self, labels: Sequence[str]) -> str:
        """Returns a digest of the images, their ids and some of their labels, in order.

        Args:
            labels: their names.
        """
        digests = [str(self.images)]
        for sample in self.samples:
            digests += [sample.id, sample.pixels, *(str(sample.labels[label]["digest"]) for label in labels)]
        return opened.digest("\0".join(digests).encode("utf-8", "surrogateescape"))


def look(
    source: Source,
    *,
    files: Sequence[Opened] = (),
    name: str = "",
    cache: Path | None = None,
    most: int = 0,
    on_progress: OnProgress = lambda completed, total: None,
) -> Survey:
    """Decodes every sample of a source, with its labels.

    What was seen is kept in `cache`, and is not looked at again as long as every file that was read is the same.

    Args:
        source: an open split.
        files: that were read to open it.
        name: of the source, its options and its split, by which what was seen is found again.
        cache: the folder to keep it in; None keeps nothing.
        most: samples to look at, evenly spread over the split; 0 means all.
        on_progress: is called now and then.

    Returns:
        What was seen. Samples that cannot be read are in its `errors`; nothing is raised for them.
    """
    indices = _evenly_spaced(len(source), most)
    samples, errors = [], []
    try:
        reading = reading_of(source)
    except UserError as error:  # of one file; there may be more
        reading, errors = Reading(), [str(error)]
    key = survey_cache.key(name, dict(source.class_names), len(source), most, dict(reading.counts), reading.notes)
    if cache is not None:
        cached_facts = survey_cache.load(cache, key)
        facts = tuple(SampleFacts(*fields) for fields in cached_facts or ())
        if cached_facts is not None and all(
            bits == _grey_bits(source) for bits in {fields.grey_bits for fields in facts} - {None}
        ):
            return Survey(len(source), len(indices), facts, (), reading)
    start_time, files_read = time.monotonic(), list(files)
    all_in_files = True
    for completed, (outcome, sample_files) in enumerate(_looks(source, indices), start=1):
        if isinstance(outcome, SampleFacts):
            samples.append(outcome)
        else:
            errors.append(outcome)
        files_read += sample_files
        all_in_files &= bool(sample_files)
        on_progress(completed, len(indices))
    told_apart = all_in_files or getattr(source, "embedded", False)
    if cache is not None and not errors and told_apart and time.monotonic() - start_time > WORTH_KEEPING_S:
        survey_cache.save(cache, key, samples, files_read)
    return Survey(len(source), len(indices), tuple(samples), tuple(dict.fromkeys(errors)), reading)


def _grey_bits(source: Source) -> int | None:
    """Bits of grey images, as the present training images decide; None where the source does not say."""
    grey = getattr(source, "grey", None)
    return None if grey is None else grey()


def _evenly_spaced(count: int, most: int) -> range:
    return range(0, count, -(-count // most) if most and count else 1)


def _looks(source: Source, indices: range) -> Iterator[tuple[SampleFacts | str, list[Opened]]]:
    """Yields what was seen of each sample, or why nothing, and the files that were read for it."""
    threads = min(MAX_THREADS, 2 * (os.cpu_count() or 1))
    index_iterator = iter(indices)
    with ThreadPoolExecutor(threads, thread_name_prefix="survey") as pool:
        while chunk := list(itertools.islice(index_iterator, CHUNK)):
            yield from pool.map(lambda index: _look(source, index), chunk)


def _look(source: Source, index: int) -> tuple[SampleFacts | str, list[Opened]]:
    with opened.recording() as files:
        try:
            origin = source.image_origin(index) if isinstance(source, WithOrigins) else None
            facts = facts_of(source[index], files=files, origin=origin)
            return facts._replace(grey_bits=getattr(getattr(source, "grey", None), "bits", None)), files
        except UserError as error:
            return str(error), files
