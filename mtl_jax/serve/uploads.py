"""Request parsing: images from a plain body or a form, up to a limit and without temporary files; query settings."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple

PLAIN = ("application/octet-stream", "binary/octet-stream", "")
FORM = "multipart/form-data"
SETTINGS = ("tasks", "threshold", "overlay", "shades")  # of the query
DRAIN_FACTOR = 4  # bytes read and discarded, relative to the limit, so that the client receives the error
DRAIN_SECONDS = 5.0


class Limits(NamedTuple):
    """Limits of one request."""

    upload_mb: float = 25.0
    megapixels: float = 50.0
    seconds: float = 60.0  # for the upload, and again for the response
    waiting: int = 64  # concurrent requests

    @property
    def upload_bytes(self) -> int:
        """Largest body in bytes."""
        return int(self.upload_mb * 1e6)

    @property
    def pixels(self) -> int:
        """Largest image in pixels."""
        return int(self.megapixels * 1e6)


class RequestError(Exception):
    """A rejected request: HTTP status and reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


async def read_body(stream: AsyncIterator[bytes], limits: Limits) -> bytes:
    """Reads the body of a request.

    Raises:
        RequestError: 413 if it exceeds the limit.
    """
    body, size, deadline = bytearray(), 0, None
    async for chunk in stream:
        size += len(chunk)
        if size <= limits.upload_bytes:
            body += chunk
            continue
        body.clear()
        deadline = deadline or time.monotonic() + DRAIN_SECONDS
        if size > DRAIN_FACTOR * limits.upload_bytes or time.monotonic() > deadline:
            break
    if size > limits.upload_bytes:
        raise RequestError(413, f"expected at most {limits.upload_mb:g} MB, found more; shrink the image")
    return bytes(body)


def extract_image(body: bytes, content_type: str) -> bytes:
    """Extracts the bytes of the image file from a body.

    Args:
        body: body of a request.
        content_type: its Content-Type header.

    Raises:
        RequestError: 415 if it is neither an image nor a form; 422 if it has no file or several, or a setting.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == FORM:
        files, fields = _form_content(body, content_type)
        if settings := [name for name in fields if name in SETTINGS]:
            raise RequestError(
                422, f"{settings[0]}: expected in the address (/predict?{settings[0]}=…), not in the form"
            )
        if len(files) != 1:
            raise RequestError(
                422, f"expected one file in the form, found {len(files)}; send one image with each request"
            )
        body = files[0]
    elif not kind.startswith("image/") and kind not in PLAIN:
        raise RequestError(
            415,
            f"expected an image (Content-Type image/jpeg, image/png …, or application/octet-stream) or {FORM} with "
            f"one file, found {kind[:80]!r}; curl sends it with --data-binary @photo.jpg -H 'Content-Type: image/jpeg'",
        )
    if not body:
        raise RequestError(422, "expected an image, found an empty body; send the bytes of its file")
    return body


def _form_content(body: bytes, content_type: str) -> tuple[list[bytes], list[str]]:
    """Returns the files of a form, whose names are ignored, and the names of its other fields."""
    boundary = re.search(r'boundary=(?:"([^"]{1,200})"|([^\s;]{1,200}))', content_type)
    if not boundary:
        raise RequestError(
            422, "expected a form with a boundary, found none; let the client write the Content-Type header"
        )
    mark = b"--" + (boundary[1] or boundary[2]).encode("latin-1", "replace")
    files, fields = [], []
    for section in (b"\r\n" + body).split(b"\r\n" + mark)[1:]:
        head, gap, content = section.partition(b"\r\n\r\n")
        if gap and re.search(rb"(?i)content-disposition:[^\r\n]*\bfilename\*?=", head[:4096]):
            files.append(content)
        elif gap and (field := re.search(rb'(?i)content-disposition:[^\r\n]*\bname="([^"\r\n]*)"', head[:4096])):
            fields.append(field[1].decode("utf-8", "replace"))
    return files, fields


def require_known(query: Mapping[str, str]) -> None:
    """Checks the names of the query's settings: a misspelt one would have no effect.

    Raises:
        RequestError: 422 if one is unknown.
    """
    if unknown := [name for name in query if name not in SETTINGS]:
        raise RequestError(422, f"expected settings {', '.join(SETTINGS)}, found {unknown[0][:40]!r}")


def parse_switch(query: Mapping[str, str], name: str) -> bool:
    """Parses a boolean of the query.

    Raises:
        RequestError: 422 if it is neither true nor false.
    """
    value = query.get(name, "false").lower()
    if value not in ("true", "false", "1", "0"):
        raise RequestError(422, f"{name}: expected true or false, found {value[:40]!r}")
    return value in ("true", "1")


def parse_threshold(query: Mapping[str, str]) -> float | None:
    """Parses the lowest score of the query; None without one.

    Raises:
        RequestError: 422 if it is not a score.
    """
    text = query.get("threshold", "")
    try:
        value = float(text) if text else None
    except ValueError:
        value = -1.0
    if value is not None and not 0 <= value <= 1:
        raise RequestError(422, f"threshold: expected a score from 0 to 1, found {text[:40]!r}")
    return value


def parse_tasks(query: Mapping[str, str], task_names: tuple[str, ...]) -> tuple[str, ...]:
    """Parses the task names of the query; no name or "all" means all tasks.

    Raises:
        RequestError: 422 if a name is unknown.
    """
    requested = [name.strip() for name in query.get("tasks", "all").split(",") if name.strip()]
    if not requested or requested == ["all"]:
        return task_names
    if unknown := [name for name in requested if name not in task_names]:
        raise RequestError(422, f"tasks: expected some of {', '.join(task_names)}, found {', '.join(unknown)[:80]!r}")
    return tuple(name for name in task_names if name in requested)
