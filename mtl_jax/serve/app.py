"""The HTTP application: the page, `POST /predict`, and their description."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from mtl_jax import page
from mtl_jax.data.images import decode_image
from mtl_jax.errors import UserError
from mtl_jax.serve import answers, description, uploads
from mtl_jax.serve.answering import Answering, described
from mtl_jax.serve.uploads import Limits, Refused

WORKERS = 2  # threads that decode images and encode answers; each may hold one image of the most pixels
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def make(answering: Answering, limits: Limits, *, hosts: tuple[str, ...] = ("*",)) -> Starlette:
    """Returns the application.

    Args:
        answering: started already; it is stopped with the application.
        limits: of each request.
        hosts: names under which it may be asked, so that no page of another site asks it by a name of its own.
    """
    service = _Service(answering, limits)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        del app
        try:
            yield
        finally:
            await asyncio.to_thread(service.close)

    page_files = {
        f"/{name}": (file, page.TYPES[PurePosixPath(name).suffix]) for name, file in page.files("server").items()
    }
    page_files["/"] = page_files.pop("/index.html")
    spec = description.openapi(described(answering), limits)
    routes = [
        *(Route(path, _fixed(file, kind), methods=["GET"]) for path, (file, kind) in page_files.items()),
        Route("/model", _fixed(_json(described(answering)), "application/json"), methods=["GET"]),
        Route("/openapi.json", _fixed(_json(spec), "application/json"), methods=["GET"]),
        Route("/docs", _fixed(description.page(spec).encode(), "text/html"), methods=["GET"]),
        Route("/predict", service.predict, methods=["POST"]),
    ]
    handlers: dict[Any, Callable[..., Any]] = {HTTPException: _refusal, Refused: _refusal, Exception: _failure}
    host_filter = Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers, middleware=[host_filter])


class _Service:
    def __init__(self, answering: Answering, limits: Limits) -> None:
        self._answering, self._limits, self._queued = answering, limits, 0
        self._workers = ThreadPoolExecutor(WORKERS, "image")
        self._decoded = asyncio.Semaphore(WORKERS + answering.batch_size)  # images held at a time

    def close(self) -> None:
        """Ends the threads, once what waits is answered."""
        self._answering.stop()
        self._workers.shutdown()

    async def predict(self, request: Request) -> Response:
        """Answers `POST /predict`."""
        if self._queued >= self._limits.waiting:
            raise HTTPException(
                503, f"{self._queued} requests wait already; try again in a second", {"Retry-After": "1"}
            )
        self._queued += 1
        try:
            names = uploads.names(request.query_params, self._answering.network.names)
            settings = {
                "threshold": uploads.threshold(request.query_params),
                "overlay": uploads.switch(request.query_params, "overlay"),
                "shades": uploads.switch(request.query_params, "shades"),
            }
            file = await self._upload(request)
            try:
                async with asyncio.timeout(self._limits.seconds):
                    return _response(await self._respond(file, names, settings))
            except TimeoutError:
                raise Refused(
                    503, f"no answer within {self._limits.seconds:g} s; try again, or a smaller image"
                ) from None
        finally:
            self._queued -= 1

    async def _upload(self, request: Request) -> bytes:
        try:
            async with asyncio.timeout(self._limits.seconds):
                body = await uploads.read(request.stream(), self._limits)
        except TimeoutError:
            raise Refused(408, f"expected the image within {self._limits.seconds:g} s; try again") from None
        except ClientDisconnect:
            raise Refused(400, "expected the whole image; the client went away") from None
        return uploads.image_of(body, request.headers.get("content-type", ""))

    async def _respond(self, file: bytes, names: tuple[str, ...], settings: dict[str, Any]) -> dict[str, Any]:
        loop, bits = asyncio.get_running_loop(), self._answering.grey_bits
        async with self._decoded:
            start = time.perf_counter()
            decode = functools.partial(
                decode_image,
                file,
                name="the upload",
                max_pixels=self._limits.pixels,
                grey_bits=None if bits is None else lambda: bits,
            )
            try:
                image = await loop.run_in_executor(self._workers, decode)
            except UserError as error:
                raise Refused(413 if "at most" in str(error) else 422, str(error)) from error
            ms = {"decode": 1e3 * (time.perf_counter() - start)}
            result = await asyncio.wrap_future(self._answering.ask(image, names))
            render = functools.partial(answers.to_json, self._answering, image, result, ms=ms, **settings)
            return await loop.run_in_executor(self._workers, render)


def _json(tree: Any) -> bytes:
    return json.dumps(tree, ensure_ascii=False, allow_nan=False).encode()


def _response(tree: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(_json(tree), status, {**HEADERS, **(headers or {})}, "application/json")


def _fixed(content: bytes, kind: str) -> Callable[[Request], Any]:
    async def give(request: Request) -> Response:
        del request
        return Response(content, 200, HEADERS, kind)

    return give


async def _refusal(request: Request, error: Any) -> Response:
    del request
    status = error.status if isinstance(error, Refused) else error.status_code
    reason = error.reason if isinstance(error, Refused) else error.detail
    return _response({"error": reason}, status, getattr(error, "headers", None))


async def _failure(request: Request, error: Exception) -> Response:
    del request
    return _response({"error": f"the server failed ({type(error).__name__}); its log has more"}, 500)
