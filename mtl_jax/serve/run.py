"""HTTP server: runs until it is stopped, and finishes open requests before it ends."""

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
from mtl_jax.serve.inference import InferenceService
from mtl_jax.serve.uploads import Limits

LOCAL = ("127.0.0.1", "localhost")  # host names of the loopback interface
GRACE_SECONDS = 30  # for open requests, after the stop signal


class Server(uvicorn.Server):
    """Ends on SIGINT and SIGTERM, and returns instead of raising them again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles both signals while the server runs."""
        if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
            yield
            return
        previous = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def listen(host: str, port: int) -> socket.socket:
    """Opens the port.

    Raises:
        UserError: the port is in use, or the host is not an address of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(f"{host}:{port} cannot be listened on ({error}); name others with --host and --port") from error


def serve(service: InferenceService, limits: Limits, listener: socket.socket, on_start: Callable[[str], None]) -> None:
    """Runs the server until SIGINT or SIGTERM.

    Args:
        service: a started service.
        limits: limits of a request.
        listener: socket from `listen`.
        on_start: called with the URL of the page.
    """
    host, port = listener.getsockname()[:2]
    is_local = host in LOCAL
    application = app.make(service, limits, hosts=LOCAL if is_local else ("*",))
    settings: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False, "http": "h11"}
    config = uvicorn.Config(application, timeout_graceful_shutdown=GRACE_SECONDS, timeout_keep_alive=30, **settings)
    on_start(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
    Server(config).run(sockets=[listener])
