"""Detection of images that are in both the training and the validation data of a run."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from mtl_jax.data.facts import SampleFacts
from mtl_jax.data.sources.base import Source, counted, read_bytes
from mtl_jax.errors import UserError

log = logging.getLogger(__name__)


@runtime_checkable
class WithOrigins(Protocol):
    """A source that can say what an image is made of without decoding it."""

    def image_origin(self, index: int) -> Path | bytes:
        """Returns the image's file, or bytes that another image does not have."""
        ...


class Place(NamedTuple):
    """An image in a stream's split."""

    stream: str
    index: int


class Leak(NamedTuple):
    """An image of a validation split that is in a training split too."""

    validation: Place
    training: Place


class _Content(NamedTuple):
    length: int  # bytes
    file: Path | None  # to be read only where the length is not unique
    digest: bytes  # where there is no file


def refuse(
    training: Mapping[str, Source],
    validation: Mapping[str, Source],
    *,
    leaks: Sequence[Leak] | None = None,
    tolerated_percent: float = 0.0,
) -> None:
    """Refuses streams of which one validates with images that one trains on.

    Args:
        training: stream -> its training split.
        validation: stream -> its validation split.
        leaks: what `find_seen` has found; by default, `find` looks for them.
        tolerated_percent: of the validation images of all streams; up to so many are logged instead, as published
            datasets hold some images twice.

    Raises:
        UserError: there are more; names the first in both splits. Or an image is not there.
    """
    leaks = find(training, validation) if leaks is None else leaks
    if not leaks:
        return
    validated, training_image = leaks[0]
    validation_id = validation[validated.stream][validated.index]["id"]
    training_id = training[training_image.stream][training_image.index]["id"]
    first = (
        f"first: {validation_id!r} of stream {validated.stream}, which stream {training_image.stream} trains on "
        f"as {training_id!r}"
    )
    if 100.0 * len(leaks) > tolerated_percent * sum(map(len, validation.values())):
        raise UserError(
            f"expected validation images that no stream trains on, found {len(leaks)} ({first}); take them out of one "
            "of the two splits, or choose other splits or images in the streams' options"
        )
    log.warning("Tolerated: %s in training too (%s)", counted(len(leaks), "validation images"), first)


def find(training: Mapping[str, Source], validation: Mapping[str, Source]) -> list[Leak]:
    """Compares every validation image with the training images of all streams.

    Images are the same when their files are, byte for byte; an image that was stored again is another. Files are read
    only where one of the same length is on the other side, which is rare. What is neither in a file nor `WithOrigins`
    is decoded, and compared by its pixels with others of its kind.

    Args:
        training: stream -> its training split.
        validation: stream -> its validation split.

    Returns:
        One for every validation image concerned, in order, with the first training image that equals it.

    Raises:
        UserError: an image is not there.
    """
    training_contents, validated = list(_contents(training)), list(_contents(validation))
    lengths = {content.length for _, content in training_contents} & {content.length for _, content in validated}
    digest_of = functools.cache(lambda file: _digest(read_bytes(file, noun="an image file")))

    def digests(side: list[tuple[Place, _Content]]) -> Iterator[tuple[Place, bytes]]:
        for place, content in side:
            if content.length in lengths:
                yield place, digest_of(content.file) if content.file else content.digest

    first: dict[bytes, Place] = {}
    for place, digest in digests(training_contents):
        first.setdefault(digest, place)
    return [Leak(place, first[digest]) for place, digest in digests(validated) if digest in first]


def find_seen(
    training: Mapping[str, Sequence[SampleFacts]], validation: Mapping[str, Sequence[SampleFacts]]
) -> list[Leak]:
    """Compares images that were all looked at, by their files and by their pixels.

    So a copy in another format is found too. Images of a single colour are the same only where their files are.

    Args:
        training: stream -> what was seen of every image of its training split.
        validation: stream -> the same of its validation split.

    Returns:
        As `find`.
    """
    first: dict[str, Place] = {}
    for stream, samples in training.items():
        for index, sample in enumerate(samples):
            for digest in _seen_digests(sample):
                first.setdefault(digest, Place(stream, index))
    leaks = []
    for stream, samples in validation.items():
        for index, sample in enumerate(samples):
            matches = [first[digest] for digest in _seen_digests(sample) if digest in first]
            leaks += [Leak(Place(stream, index), matches[0])] if matches else []
    return leaks


def _seen_digests(sample: SampleFacts) -> list[str]:
    return [digest for digest in (sample.content, "" if sample.one_colour else sample.pixels) if digest]


def _contents(sources: Mapping[str, Source]) -> Iterator[tuple[Place, _Content]]:
    for stream, source in sources.items():
        origin = source.image_origin if isinstance(source, WithOrigins) else functools.partial(_pixels, source)
        for index in range(len(source)):
            yield Place(stream, index), _content(origin(index))


def _pixels(source: Source, index: int) -> bytes:
    image = source[index]["image"]
    return repr(image.shape).encode() + image.tobytes()


def _content(origin: Path | bytes) -> _Content:
    if isinstance(origin, bytes):
        return _Content(len(origin), None, _digest(origin))
    try:
        return _Content(origin.stat().st_size, origin, b"")
    except (OSError, ValueError) as error:  # ValueError: a name that no path can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{origin}: expected an image file, found {reason}; correct the path") from error


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
