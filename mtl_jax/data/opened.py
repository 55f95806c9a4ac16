"""Record of the files that were opened while reading, and a check that they are unchanged."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

# Another write to a file so young might leave the same times: FAT counts in steps of 2 s.
SETTLED_NS = 2_000_000_000


class Opened(NamedTuple):
    """A file as it was when it was read."""

    path: str
    size: int  # bytes
    modified_ns: int
    changed_ns: int  # of the entry on the disk, which no program can set back
    settled: bool  # its times distinguish it from every later content
    digest: str

    def is_the_same(self) -> bool:
        """Whether the file still holds what was read: by its times, or by its content where they are too young."""
        try:
            status = os.stat(self.path)
            if (status.st_size, status.st_mtime_ns, status.st_ctime_ns) != (
                self.size,
                self.modified_ns,
                self.changed_ns,
            ):
                return False
            return self.settled or digest(Path(self.path).read_bytes()) == self.digest
        except OSError:
            return False


_noting: ContextVar[list[Opened] | None] = ContextVar("_noting", default=None)


@contextlib.contextmanager
def recording() -> Iterator[list[Opened]]:
    """Lists the files that this thread reads while the context lasts, in order."""
    files: list[Opened] = []
    token = _noting.set(files)
    try:
        yield files
    finally:
        _noting.reset(token)


def note(path: Path, status: os.stat_result, content: bytes) -> None:
    """Adds a file to the list of `noted`, where there is one.

    Args:
        path: of the file.
        status: from before it was read.
        content: what was read.
    """
    files = _noting.get()
    if files is not None:
        settled = max(status.st_mtime_ns, status.st_ctime_ns) < time.time_ns() - SETTLED_NS
        times = (status.st_mtime_ns, status.st_ctime_ns)
        files.append(Opened(str(path.absolute()), len(content), *times, settled, digest(content)))


def note_again(files: Iterable[Opened]) -> None:
    """Adds files that were read before to the list of `noted`, where there is one."""
    noted_now = _noting.get()
    if noted_now is not None:
        noted_now.extend(files)


def digest(content: bytes | memoryview) -> str:
    """Returns 128 bits that another content does not have."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()
