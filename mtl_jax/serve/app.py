"""HTTP application: the page, `POST /predict`, and the API description."""

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
from mtl_jax.serve import description, responses, uploads
from mtl_jax.serve.inference import InferenceService, describe_model
from mtl_jax.serve.uploads import Limits, RequestError

WORKERS = 2  # threads that decode images and encode responses; each may hold one image of the largest size
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def make(service: InferenceService, limits: Limits, *, hosts: tuple[str, ...] = ("*",)) -> Starlette:
    """Returns the application.

    Args:
        service: a started service; it stops with the application.
        limits: limits of a request.
        hosts: accepted host names, against requests from pages of other sites (DNS rebinding).
    """
    handler = _Handler(service, limits)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        del app
        try:
            yield
        finally:
            await asyncio.to_thread(handler.close)

    page_files = {
        f"/{name}": (file, page.TYPES[PurePosixPath(name).suffix]) for name, file in page.files("server").items()
    }
    page_files["/"] = page_files.pop("/index.html")
    spec = description.openapi(describe_model(service), limits)
    routes = [
        *(Route(path, _static(file, kind), methods=["GET"]) for path, (file, kind) in page_files.items()),
        Route("/model", _static(_json(describe_model(service)), "application/json"), methods=["GET"]),
        Route("/openapi.json", _static(_json(spec), "application/json"), methods=["GET"]),
        Route("/docs", _static(description.page(spec).encode(), "text/html"), methods=["GET"]),
        Route("/predict", handler.predict, methods=["POST"]),
    ]
    handlers: dict[Any, Callable[..., Any]] = {
        HTTPException: _error_response,
        RequestError: _error_response,
        Exception: _server_error,
    }
    host_filter = Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers, middleware=[host_filter])


class _Handler:
    def __init__(self, service: InferenceService, limits: Limits) -> None:
        self._inference, self._limits, self._queued = service, limits, 0
        self._workers = ThreadPoolExecutor(WORKERS, "image")
        self._decoded = asyncio.Semaphore(WORKERS + service.batch_size)  # decoded images in memory

    def close(self) -> None:
        """Finishes queued requests and ends the threads."""
        self._inference.stop()
        self._workers.shutdown()

    async def predict(self, request: Request) -> Response:
        """Handles `POST /predict`."""
        if self._queued >= self._limits.waiting:
            raise HTTPException(
                503, f"{self._queued} requests wait already; try again in a second", {"Retry-After": "1"}
            )
        self._queued += 1
        try:
            uploads.require_known(request.query_params)
            names = uploads.parse_tasks(request.query_params, self._inference.network.names)
            settings = {
                "threshold": uploads.parse_threshold(request.query_params),
                "overlay": uploads.parse_switch(request.query_params, "overlay"),
                "shades": uploads.parse_switch(request.query_params, "shades"),
            }
            file = await self._upload(request)
            try:
                async with asyncio.timeout(self._limits.seconds):
                    return _response(await self._respond(file, names, settings))
            except TimeoutError:
                raise RequestError(
                    503, f"no response within {self._limits.seconds:g} s; try again, or a smaller image"
                ) from None
        finally:
            self._queued -= 1

    async def _upload(self, request: Request) -> bytes:
        try:
            async with asyncio.timeout(self._limits.seconds):
                body = await uploads.read_body(request.stream(), self._limits)
        except TimeoutError:
            raise RequestError(408, f"expected the image within {self._limits.seconds:g} s; try again") from None
        except ClientDisconnect:
            raise RequestError(400, "expected the whole image; the client disconnected") from None
        return uploads.extract_image(body, request.headers.get("content-type", ""))

    async def _respond(self, file: bytes, names: tuple[str, ...], settings: dict[str, Any]) -> dict[str, Any]:
        loop, bits = asyncio.get_running_loop(), self._inference.grey_bits
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
                raise RequestError(413 if "at most" in str(error) else 422, str(error)) from error
            ms = {"decode": 1e3 * (time.perf_counter() - start)}
            result = await asyncio.wrap_future(self._inference.submit(image, names))
            render = functools.partial(responses.to_json, self._inference, image, result, ms=ms, **settings)
            return await loop.run_in_executor(self._workers, render)


def _json(tree: Any) -> bytes:
    return json.dumps(tree, ensure_ascii=False, allow_nan=False).encode()


def _response(tree: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(_json(tree), status, {**HEADERS, **(headers or {})}, "application/json")


def _static(content: bytes, kind: str) -> Callable[[Request], Any]:
    async def respond(request: Request) -> Response:
        del request
        return Response(content, 200, HEADERS, kind)

    return respond


async def _error_response(request: Request, error: Any) -> Response:
    del request
    status = error.status if isinstance(error, RequestError) else error.status_code
    reason = error.reason if isinstance(error, RequestError) else error.detail
    return _response({"error": reason}, status, getattr(error, "headers", None))


async def _server_error(request: Request, error: Exception) -> Response:
    del request
    return _response({"error": f"the server failed ({type(error).__name__}); its log has more"}, 500)
