"""Atomic writing of a folder: complete or absent, by one process at a time."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mtl_jax.errors import UserError


@contextlib.contextmanager
def exclusive_access(data_root: Path) -> Iterator[None]:
    """Keeps two preparations from writing the same partial files.

    Args:
        data_root: the folder that holds the sets; made where absent.

    Raises:
        UserError: another preparation is running there.
    """
    data_root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(data_root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{data_root}: expected no other preparation here, found one running; wait until it has ended"
            ) from error
        except OSError:
            pass  # some network file systems cannot lock a folder: continue unguarded
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Gives a hidden sibling to write in; it takes the target's place at the end, or vanishes on an error.

    Args:
        target: the folder to make or to replace.

    Yields:
        An empty folder.
    """
    partial, old = (target.with_name(f".{target.name}.{state}") for state in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    try:
        partial.mkdir(parents=True)
        yield partial
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(target, old)
        try:
            os.rename(partial, target)
        except OSError:
            if old.exists():
                os.rename(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
