"""An HTTP server on localhost that misbehaves on request, for the tests of downloads."""

import contextlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class LocalServer:
    """What is served, how it misbehaves, and what was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: list[int | None] = field(default_factory=list)  # bytes sent before the cut, one per request
    statuses: list[int] = field(default_factory=list)  # answered first, one per request
    ignore_range: bool = False
    wrong_range: bool = False
    without_length: bool = False
    length: str | None = None  # told instead of the true one
    url: str = ""
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # (path, Range)


@contextlib.contextmanager
def serve() -> Iterator[LocalServer]:
    """Serves `files` on a free port while the context lasts."""
    state = LocalServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _answer(self, state)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


def _answer(handler: BaseHTTPRequestHandler, state: LocalServer) -> None:
    requested = handler.headers.get("Range")
    state.requests.append((handler.path, requested))
    content = state.files.get(handler.path.lstrip("/"))
    if state.statuses or content is None:
        handler.send_error(state.statuses.pop(0) if state.statuses else 404)
        return
    start = int(re.fullmatch(r"bytes=(\d+)-", requested)[1]) if requested and not state.ignore_range else 0
    if start >= len(content) > 0:
        handler.send_error(416)
        return
    body = content[start:]
    handler.send_response(206 if start else 200)
    if start:
        first = start + 1 if state.wrong_range else start
        handler.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
    if not state.without_length:
        handler.send_header("Content-Length", state.length or str(len(body)))
    handler.end_headers()
    cut = state.cut_after.pop(0) if state.cut_after else None
    handler.wfile.write(body[:cut])
