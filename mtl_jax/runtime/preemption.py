"""Preemption: on SIGTERM the run saves its state and ends with status 0."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

SAVED = "stopped by SIGTERM, with everything saved; the same command resumes from here"


class Preempted(Exception):
    """The run received a stop request and has saved; this is no error."""


class Preemption:
    """Stop request of a run. As a context manager it listens to SIGTERM; otherwise there is no request.

    While steps are taken (`training`), the loop asks `requested` after each, saves and raises `Preempted`. Anything
    else (compiling, evaluating, reading) is left at once, whatever it is doing, after `unsaved` work is saved. That
    takes a thread, for Python's own handlers wait until a call of the compiler returns.
    """

    def __init__(self, leave: Callable[[], None] | None = None) -> None:
        """Listens to nothing yet.

        Args:
            leave: ends the process; by default with a word on stderr and status 0.
        """
        self._leave = leave or _leave
        self._requested = threading.Event()
        self._training = threading.Lock()
        self._save: Callable[[], None] | None = None
        self._reader = self._writer = self._wakeup_before = -1
        self._handler_before: Any = None

    def __enter__(self) -> Preemption:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._handler_before = signal.signal(signal.SIGTERM, _pass_on)
        self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        signal.signal(signal.SIGTERM, self._handler_before)
        os.close(self._writer)  # ends the thread

    @property
    def requested(self) -> bool:
        """Whether the run received a stop request."""
        return self._requested.is_set()

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """While it is open, only the run ends itself."""
        self._training.acquire()
        try:
            yield
        except Preempted:  # the lock stays: the run is ending, and nobody else shall
            raise
        except BaseException:
            self._training.release()
            raise
        self._training.release()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within `training`: something that takes long, changes nothing, and may be left at once."""
        self._training.release()
        try:
            yield
        finally:
            self._training.acquire()

    @contextlib.contextmanager
    def unsaved(self, save: Callable[[], None]) -> Iterator[None]:
        """While it is open there is work that leaving would lose; `save` saves it, from another thread."""
        self._save = save
        try:
            yield
        finally:
            self._save = None

    def _listen(self) -> None:
        while signals := os.read(self._reader, 64):  # the numbers of those that came
            if signal.SIGTERM in signals:
                self._requested.set()
                with self._training:
                    if self._save is not None:
                        self._save()
                    self._leave()
        os.close(self._reader)


def _pass_on(number: int, frame: FrameType | None) -> None:
    """Python wakes the thread only for signals that have a handler."""


def _leave() -> None:
    print(SAVED, file=sys.stderr, flush=True)
    os._exit(0)
