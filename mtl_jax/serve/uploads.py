"""Uploads: reads an image from a plain body or a form, up to a limit, without touching the disk or the file's name."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple

PLAIN = ("application/octet-stream", "binary/octet-stream", "")
FORM = "multipart/form-data"
DRAINED = 4  # times the limit that are read and thrown away, so that the client gets to read the refusal
DRAIN_SECONDS = 5.0


class Limits(NamedTuple):
    """Limits of one request."""

    upload_mb: float = 25.0
    megapixels: float = 50.0
    seconds: float = 60.0  # for the upload, and again for the answer
    waiting: int = 64  # requests at a time

    @property
    def upload_bytes(self) -> int:
        """Of a body."""
        return int(self.upload_mb * 1e6)

    @property
    def pixels(self) -> int:
        """Of an image."""
        return int(self.megapixels * 1e6)


class Refused(Exception):
    """A request that gets no answer, with the status and what was expected instead."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


async def read(stream: AsyncIterator[bytes], limits: Limits) -> bytes:
    """Reads a body.

    Raises:
        Refused: 413, it is longer than the limit.
    """
    body, size, given_up = bytearray(), 0, None
    async for chunk in stream:
        size += len(chunk)
        if size <= limits.upload_bytes:
            body += chunk
            continue
        body.clear()
        given_up = given_up or time.monotonic() + DRAIN_SECONDS
        if size > DRAINED * limits.upload_bytes or time.monotonic() > given_up:
            break
    if size > limits.upload_bytes:
        raise Refused(413, f"expected at most {limits.upload_mb:g} MB, found more; shrink the image")
    return bytes(body)


def image_of(body: bytes, content_type: str) -> bytes:
    """Returns the image's file out of a body.

    Args:
        body: of a request.
        content_type: its header.

    Raises:
        Refused: 415, it is neither an image nor a form; 422, it holds none, or several.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == FORM:
        files = _uploaded_files(body, content_type)
        if len(files) != 1:
            raise Refused(422, f"expected one file in the form, found {len(files)}; send one image with each request")
        body = files[0]
    elif not kind.startswith("image/") and kind not in PLAIN:
        raise Refused(
            415,
            f"expected an image (Content-Type image/jpeg, image/png …, or application/octet-stream) or {FORM} with "
            f"one file, found {kind[:80]!r}; curl sends it with --data-binary @photo.jpg -H 'Content-Type: image/jpeg'",
        )
    if not body:
        raise Refused(422, "expected an image, found an empty body; send the bytes of its file")
    return body


def _uploaded_files(body: bytes, content_type: str) -> list[bytes]:
    """The files of a form; their names are not looked at."""
    boundary = re.search(r'boundary=(?:"([^"]{1,200})"|([^\s;]{1,200}))', content_type)
    if not boundary:
        raise Refused(422, "expected a form with a boundary, found none; let the client write the Content-Type header")
    mark = b"--" + (boundary[1] or boundary[2]).encode("latin-1", "replace")
    files = []
    for section in (b"\r\n" + body).split(b"\r\n" + mark)[1:]:
        head, gap, content = section.partition(b"\r\n\r\n")
        if gap and re.search(rb"(?i)content-disposition:[^\r\n]*\bfilename\*?=", head[:4096]):
            files.append(content)
    return files


def switch(query: Mapping[str, str], name: str) -> bool:
    """Reads a switch of the query.

    Raises:
        Refused: 422, it is neither true nor false.
    """
    value = query.get(name, "false").lower()
    if value not in ("true", "false", "1", "0"):
        raise Refused(422, f"{name}: expected true or false, found {value[:40]!r}")
    return value in ("true", "1")


def threshold(query: Mapping[str, str]) -> float | None:
    """Reads the least score of the query; None where there is none.

    Raises:
        Refused: 422, it is no score.
    """
    text = query.get("threshold", "")
    try:
        value = float(text) if text else None
    except ValueError:
        value = -1.0
    if value is not None and not 0 <= value <= 1:
        raise Refused(422, f"threshold: expected a score from 0 to 1, found {text[:40]!r}")
    return value


def names(query: Mapping[str, str], task_names: tuple[str, ...]) -> tuple[str, ...]:
    """Reads the tasks of the query; all where it names none, or "all".

    Raises:
        Refused: 422, one is unknown.
    """
    requested = [name.strip() for name in query.get("tasks", "all").split(",") if name.strip()]
    if not requested or requested == ["all"]:
        return task_names
    if unknown := [name for name in requested if name not in task_names]:
        raise Refused(422, f"tasks: expected some of {', '.join(task_names)}, found {', '.join(unknown)[:80]!r}")
    return tuple(name for name in task_names if name in requested)
