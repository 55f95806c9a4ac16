"""Metrics log: `metrics.jsonl`, one JSON object per line, and the same to trackers, such as TensorBoard."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from io import BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsFloat

from mtl_jax.errors import UserError
from mtl_jax.workdir import tracking
from mtl_jax.workdir.files import replace_text

FILE_NAME = "metrics.jsonl"
NUMBER = (int, float)
FIELDS: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "epoch": NUMBER,
    "stage": (str,),
    "split": (str,),
    "task": (str, type(None)),
    "name": (str,),
    "value": (*NUMBER, type(None)),
    "time": NUMBER,
}


class MetricsLog:
    """Appends events to a work directory; use as a context manager.

    Each line is written whole and flushed: a killed run leaves at most one torn; the next start drops it.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        trackers: Sequence[str] = ("tensorboard",),
        name: str = "",
        config: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Names the work directory; files are opened by `with`, and trackers by the first event.

        Args:
            workdir: created where missing.
            trackers: keys of `tracking.TRACKERS`, which get the same events.
            name: of the run, for them; the folder's by default.
            config: of the run, for them, as plain values.
            clock: returns seconds since 1970; replaced in tests.
        """
        self._workdir = workdir
        self._path = workdir / FILE_NAME
        self._names = tuple(trackers)
        self._about = (name or workdir.name, dict(config or {}))
        self._clock = clock
        self._purge_step: int | None = None
        self._file: BufferedWriter | None = None
        self._open: tuple[tracking.Tracker, ...] = ()

    def __enter__(self) -> MetricsLog:
        self._workdir.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(self._path)
        self._file = self._path.open("ab")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(failed=kind is not None)

    def _close(self, *, failed: bool = False) -> None:
        if self._file is not None:
            self._file.close()
        for tracker in self._open:
            tracker.close(failed=failed)
        self._file, self._open = None, ()

    def log(
        self,
        step: int,
        epoch: int | float,
        stage: str,
        split: str,
        task: str | None,
        name: str,
        value: SupportsFloat,
    ) -> None:
        """Appends one event.

        Args:
            step: training steps since the start of the run, counted across its stages.
            epoch: passes over the data since the start of the stage.
            stage: the stage being trained.
            split: "train" or "val".
            task: None for what concerns the whole network.
            name: "loss", "miou", "learning_rate", …
            value: NaN and infinity are written as null, and left out of what trackers get.
        """
        if self._file is None:
            raise RuntimeError("MetricsLog.log was called outside its `with` block")
        number = float(value)
        finite = number if math.isfinite(number) else None
        event = dict(zip(FIELDS, (step, epoch, stage, split, task, name, finite, round(self._clock(), 3)), strict=True))
        self._file.write(json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self._file.flush()
        if finite is not None:
            for tracker in self._trackers():
                tracker.log(step, f"{split}/{task or 'all'}/{name}", finite)

    def artifact(self, path: Path) -> None:
        """Gives a file of the work directory to the trackers."""
        for tracker in self._trackers():
            tracker.artifact(path)

    def flush(self) -> None:
        """Writes what trackers hold back; lines of `metrics.jsonl` are never held back."""
        for tracker in self._open:
            tracker.flush()

    def resume_from(self, step: int) -> None:
        """Forgets what was logged after a step, so that the resumed run logs it again.

        Args:
            step: of the checkpoint that training resumes from; its own events stay. -1 forgets everything.

        Raises:
            UserError: the file has a malformed line.
        """
        reopen = self._file is not None
        self._close()
        events = [event for event in read(self._path) if event["step"] <= step] if self._path.exists() else []
        lines = (json.dumps(event, ensure_ascii=False, allow_nan=False) for event in events)
        self._workdir.mkdir(parents=True, exist_ok=True)
        replace_text(self._path, "".join(line + "\n" for line in lines))
        self._purge_step = step + 1
        if reopen:
            self._file = self._path.open("ab")

    def _trackers(self) -> tuple[tracking.Tracker, ...]:
        if self._names and not self._open:
            name, config = self._about
            self._open = tracking.open_trackers(
                self._names, tracking.Start(self._workdir, name, config, self._purge_step)
            )
        return self._open


def _drop_torn_line(path: Path) -> None:
    """Ends the file with its last whole line: appending to half a line would spoil both."""
    if not path.exists():
        return
    content = path.read_bytes()
    complete_length = content.rfind(b"\n") + 1
    if complete_length < len(content):
        with path.open("r+b") as file:
            file.truncate(complete_length)


def read(path: Path) -> list[dict[str, Any]]:
    """Reads the events of a `metrics.jsonl`.

    Args:
        path: the file. What follows its last newline is the torn line of a killed run and is left out.

    Returns:
        The events in the order they were written, `value` being None where it was not finite.

    Raises:
        UserError: the file is missing or a whole line is not an event.
    """
    if not path.is_file():
        raise UserError(f"expected a log of metrics at {path}, found none; name a work directory of a training")
    *lines, _torn = path.read_bytes().split(b"\n")
    return [_parse(line, path, number) for number, line in enumerate(lines, start=1)]


def _parse(line: bytes, path: Path, number: int) -> dict[str, Any]:
    event: Any = None
    try:
        event = json.loads(line)
        valid = isinstance(event, dict) and all(
            field in event and type(event[field]) in kinds for field, kinds in FIELDS.items()
        )
        valid = valid and all(math.isfinite(event[field] or 0) for field in ("epoch", "value", "time"))
    except (ValueError, OverflowError, RecursionError):  # not JSON, or not UTF-8; or a number that no float can be
        valid = False
    if not valid:
        start = line[:40].decode(errors="replace")
        raise UserError(
            f"expected a JSON object with {', '.join(FIELDS)} in line {number} of {path}, found {start!r}; "
            "delete that line"
        )
    return event
