"""Compiled programs in files, by the digest of what they compute: the next start neither traces nor compiles them."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import logging
import os
import pickle
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

FOLDER = "programs"  # below that of JAX's compilation cache
MAX_BYTES = 2**30  # the least recently used programs go first
# An option with its default value: JAX's own cache has no program under it. Of one that it gives, no file can be made.
OPTIONS = {"xla_embed_ir_in_executable": False}

log = logging.getLogger(__name__)


def folder() -> Path | None:
    """Returns where programs are kept, or None where JAX's compilation cache is off or they cannot be kept."""
    settings: Any = jax.config
    place = settings.jax_compilation_cache_dir
    if not place or not settings.jax_enable_compilation_cache:
        return None
    if jax.process_count() > 1 or jax.default_backend() != "cpu":
        return None
    return Path(place) / FOLDER


def compiled(lowered: Any) -> Any:
    """Compiles what `jax.jit(…).lower` returned, past JAX's own cache, so that `save` can make a file of it."""
    settings: Any = jax.config
    least_seconds = settings.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
    try:
        return lowered.compile(compiler_options=OPTIONS)
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)


def load(place: Path, digest: str, devices: Sequence[Any]) -> Any | None:
    """Returns the program that was saved under a digest, or None.

    Args:
        place: from `folder`.
        digest: of the function and its arguments.
        devices: that it runs on, in the order of their ids.
    """
    file = place / digest
    try:
        saved = file.read_bytes()
    except OSError:
        return None
    try:
        checksum, content = saved.split(b"\n", 1)
        if hashlib.sha256(content).hexdigest().encode() != checksum:
            raise ValueError("its checksum differs")
        payload, inputs, outputs = pickle.loads(zlib.decompress(content))
        program = serialize_executable.deserialize_and_load(payload, inputs, outputs, execution_devices=devices)
        os.utime(file)
    except Exception as error:  # whatever is wrong with the file, the function can be compiled
        log.warning("%s cannot be used (%s): compiled again", file, " ".join(str(error).split())[:200])
        file.unlink(missing_ok=True)
        return None
    return program


def save(place: Path, digest: str, program: Any) -> None:
    """Writes a program from `compiled` to a file, and removes the oldest of too many.

    Nothing is written where JAX makes no file of the program, as of one with large constants, or the disk is full.
    """
    try:
        content = zlib.compress(pickle.dumps(serialize_executable.serialize(program)), 1)
    except (NotImplementedError, ValueError, TypeError, AttributeError, pickle.PicklingError) as error:
        log.debug("No file is made of a program: %s", error)
        return
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place, prefix=".", delete=False) as file:
            file.write(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
        Path(file.name).replace(place / digest)  # atomic: others see the whole file or none
        _prune(place)
    except OSError as error:
        log.warning("A compiled program cannot be kept in %s (%s)", place, error.strerror or error)


def link(place: Path, digest: str, file: Path) -> None:
    """Makes a saved program known under one more digest."""
    with contextlib.suppress(OSError):
        os.link(file, place / digest)


def _prune(place: Path) -> None:
    status_of, names_of = {}, collections.defaultdict(list)  # of each file, which may have several names
    for name in place.iterdir():
        status = name.stat()
        status_of[status.st_ino] = status
        names_of[status.st_ino].append(name)
    total = sum(status.st_size for status in status_of.values())
    for number, status in sorted(status_of.items(), key=lambda item: item[1].st_mtime):
        if total <= MAX_BYTES:
            return
        for name in names_of[number]:
            name.unlink(missing_ok=True)
        total -= status.st_size
