"""Downloads that resume: a `.part` file, HTTP Range, bounded retries, a checksum, then an atomic rename."""

import contextlib
import errno
import hashlib
import http.client
import os
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from mtl_jax.errors import UserError

CHUNK_BYTES = 1 << 18
ATTEMPTS = 6  # with the waits below, a server may be away for half a minute
TIMEOUT_S = 30.0
FIRST_WAIT_S = 1.0  # doubles after each failure
RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})  # the server's own "try again", RFC 9110
OTHER_MEANS = "or fetch the file by other means and name its folder with --from_dir"

OnBytes = Callable[[int, int | None], None]


class _Interrupted(Exception):
    """The connection failed in a way that another attempt may correct."""


def _ignore_progress(received: int, total: int | None) -> None:
    del received, total


def download(
    url: str,
    target: Path,
    *,
    sha256: str,
    attempts: int = ATTEMPTS,
    timeout_s: float = TIMEOUT_S,
    first_wait_s: float = FIRST_WAIT_S,
    on_bytes: OnBytes = _ignore_progress,
    other_means: str = OTHER_MEANS,
) -> Path:
    """Downloads a file, going on where an earlier attempt stopped.

    The bytes collect in `<target>.part`; `target` appears only when they are complete and match the checksum.

    Args:
        url: http or https address.
        target: the file to make. Where it is already there and matches, nothing is downloaded.
        sha256: hexadecimal SHA-256 that the whole file must have, or the beginning of it that is known.
        attempts: connections tried before giving up; the bytes so far are kept for the next call.
        timeout_s: seconds without a byte after which a connection counts as cut.
        first_wait_s: seconds before the second attempt, doubled before each further one.
        on_bytes: called with (bytes so far, bytes in all or None).
        other_means: what a user may do where the server does not serve, for the error.

    Returns:
        `target`.

    Raises:
        UserError: the server refuses, the connection breaks too often, the checksum differs (the file is
            removed), or the disk is full or not writable.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"expected an http or https address, found {url!r}; correct the base URL")
    partial_file = target.with_name(target.name + ".part")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_file():
            if file_sha256(target).startswith(sha256):
                return target
            target.unlink()  # only verified files get this name, so the disk or somebody changed it since
    _fetch_with_retries(url, partial_file, attempts, timeout_s, first_wait_s, on_bytes, other_means)
    with disk_errors(partial_file):
        digest = file_sha256(partial_file)
        if not digest.startswith(sha256):
            partial_file.unlink()
            raise UserError(
                f"{url}: expected SHA-256 {sha256}, found {digest}; the download was removed:"
                f" run the command again, {other_means}"
            )
        os.replace(partial_file, target)
    return target


def file_sha256(path: Path) -> str:
    """Computes the checksum of a file.

    Args:
        path: the file.

    Returns:
        Hexadecimal SHA-256.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's errors about files into one readable line.

    Args:
        path: the file to name where the error itself names none.

    Raises:
        UserError: instead of any OSError.
    """
    try:
        yield
    except OSError as error:
        name = error.filename or path
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = "expected room on the disk, found it full; free some space and run the command again"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            message = "expected permission to read and write, found none; correct it or choose another folder"
        else:
            message = f"expected a usable file or folder, found: {error.strerror or error}; choose another"
        raise UserError(f"{name}: {message}") from error


def _fetch_with_retries(
    url: str,
    partial_file: Path,
    attempts: int,
    timeout_s: float,
    first_wait_s: float,
    on_bytes: OnBytes,
    other_means: str,
) -> None:
    reason = ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(first_wait_s * 2 ** (attempt - 1))
        try:
            _fetch(url, partial_file, timeout_s=timeout_s, on_bytes=on_bytes, other_means=other_means)
            return
        except _Interrupted as error:
            reason = str(error)
    start_bytes = partial_file.stat().st_size if partial_file.exists() else 0
    raise UserError(
        f"{url}: expected the whole file, the connection failed {attempts} times (last: {reason});"
        f" {start_bytes} bytes are kept in {partial_file}: run the same command again to resume, {other_means}"
    )


def _fetch(url: str, partial_file: Path, *, timeout_s: float, on_bytes: OnBytes, other_means: str) -> None:
    """Appends what is missing to `partial_file`: one connection."""
    offset = partial_file.stat().st_size if partial_file.exists() else 0
    response = _connect(url, offset, timeout_s, other_means)
    if response is None:
        return
    with response:
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            partial_file.unlink(missing_ok=True)
            raise _Interrupted("the server sent another part of the file than the one asked for")
        received = offset if resumed else 0  # status 200: the server ignores Range and starts over
        total = None if response.length is None else received + response.length  # None: not given, or no number
        with disk_errors(partial_file), open(partial_file, "ab" if resumed else "wb") as file:
            _check_room(partial_file, (total or 0) - received)
            while chunk := _read_chunk(response):
                file.write(chunk)
                received += len(chunk)
                on_bytes(received, total)
    if total is not None and received < total:
        raise _Interrupted(f"cut after {received} of {total} bytes")


def _connect(url: str, offset: int, timeout_s: float, other_means: str) -> http.client.HTTPResponse | None:
    """Opens the connection; None where the server says that nothing is left to send."""
    headers = {"User-Agent": "mtl_jax", **({"Range": f"bytes={offset}-"} if offset else {})}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout_s)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and offset:
                return None  # the part is complete, or too long: the checksum decides
            if error.code in RETRIED_STATUS:
                raise _Interrupted(f"status {error.code} {error.reason}") from error
            raise UserError(
                f"{url}: expected the file, found the server's status {error.code} {error.reason}; check the address, "
                f"{other_means}"
            ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, socket.gaierror | ssl.SSLCertVerificationError):
            raise UserError(
                f"{url}: expected a connection, found: {reason}; check the network, {other_means}"
            ) from error
        raise _Interrupted(str(reason)) from error


def _read_chunk(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(str(error) or type(error).__name__) from error


def _check_room(partial_file: Path, needed: int) -> None:
    # Checked before the first byte, instead of after two gigabytes.
    free_bytes = shutil.disk_usage(partial_file.parent).free
    if free_bytes < needed:
        raise UserError(
            f"{partial_file}: expected {needed} free bytes on the disk, found {free_bytes}; free some space or "
            "choose another folder"
        )
