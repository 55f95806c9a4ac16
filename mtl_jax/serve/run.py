"""The HTTP server: listens until it is stopped, and finishes open requests before it ends."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from mtl_jax.errors import UserError
from mtl_jax.serve import app
from mtl_jax.serve.answering import Answering
from mtl_jax.serve.uploads import Limits

LOCAL = ("127.0.0.1", "localhost")  # names of this machine alone
GRACE_SECONDS = 30  # for what is being answered, once the end is asked for


class Server(uvicorn.Server):
    """Ends on SIGINT and SIGTERM, and returns instead of raising them again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles both while it serves."""
        if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(host: str, port: int) -> socket.socket:
    """Opens the port.

    Raises:
        UserError: it is taken, or the host is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(f"{host}:{port} cannot be listened on ({error}); name others with --host and --port") from error


def serve(answering: Answering, limits: Limits, listener: socket.socket, on_start: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM.

    Args:
        answering: started already.
        limits: of each request.
        listener: from `listen`.
        on_start: is called with the page's address.
    """
    host, port = listener.getsockname()[:2]
    local = host in LOCAL
    application = app.make(answering, limits, hosts=LOCAL if local else ("*",))
    settings: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False, "http": "h11"}
    config = uvicorn.Config(application, timeout_graceful_shutdown=GRACE_SECONDS, timeout_keep_alive=30, **settings)
    on_start(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
    Server(config).run(sockets=[listener])
