"""Keeps what was seen of a split, for as long as the files that it was read from are the same."""

from __future__ import annotations

import functools
import gzip
import importlib.metadata
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtl_jax.data.facts import SampleFacts
from mtl_jax.data.opened import Opened, digest

MAX_FILES = 200  # splits; those that were used least recently go first
DECODERS = ("numpy", "pillow", "opencv-python-headless", "scikit-learn")  # whose versions may change what is read

_log = logging.getLogger(__name__)


def key(*values: Any) -> str:
    """Returns the name under which a split is kept: the same for the same parts and the same reading code."""
    return digest(json.dumps([values, _code()], sort_keys=True, default=str).encode("utf-8", "surrogateescape"))


@functools.cache
def _code() -> str:
    """A digest of all that reads data: another version may see another thing in the same files."""
    sources = "".join(digest(file.read_bytes()) for file in sorted(Path(__file__).parent.glob("**/*.py")))
    return digest((sources + "".join(map(_version, DECODERS))).encode())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def load(folder: Path, key: str) -> list[list[Any]] | None:
    """Returns the facts of a split's samples, or None where it is not known or a file has changed."""
    file = folder / f"{key}.json.gz"
    try:
        cached = json.loads(gzip.decompress(file.read_bytes()))
        if not all(Opened(*file_record).is_the_same() for file_record in cached["files"]):
            return None
        os.utime(file)
        return cached["samples"]
    except (OSError, EOFError, ValueError, KeyError, TypeError):  # none, or damaged: the split is looked at again
        return None


def save(folder: Path, key: str, samples: Sequence[SampleFacts], files: Sequence[Opened]) -> None:
    """Keeps the facts of a split's samples, where the folder can be written."""
    content = json.dumps({"files": list(dict.fromkeys(files)), "samples": samples}, separators=(",", ":"))
    file = folder / f"{key}.json.gz"
    draft = folder / f".{key}.{os.getpid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft.write_bytes(gzip.compress(content.encode("utf-8", "surrogateescape"), compresslevel=1))
        os.replace(draft, file)
        cache_files = sorted(folder.glob("*.json.gz"), key=lambda cache_file: cache_file.stat().st_mtime)
        for old in cache_files[:-MAX_FILES]:
            old.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("What was seen of the data is not kept in %s (%s): every start looks again", folder, error)
