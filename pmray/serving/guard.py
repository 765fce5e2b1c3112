"""What stands before all routes: keys, sizes, times, and one sentence for everything that is refused. Plain ASGI.

Starlette's ``BaseHTTPMiddleware`` would cost a task group a request, and read bodies whole.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pmray.serving.batching import Busy
from pmray.serving.bodies import json_response
from pmray.serving.keys import Keys, given_key

log = logging.getLogger("ray.serve")

OPEN = frozenset({"/readyz", "/healthz"})
"""Paths that probes ask without a key; they tell nothing but yes or no."""

UPLOADS = ("application/vnd.apache.parquet", "text/csv")
"""Kinds of bodies that are files, which may be larger."""

HERE = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""Names of this machine: a browser that was lured to another name (DNS rebinding) is turned away."""


class TooLarge(Exception):
    """A body has more bytes than it may have."""


@dataclass(frozen=True)
class Limits:
    """Of one request."""

    max_body: int
    """Bytes."""
    max_upload: int
    """Bytes of a file; four times as many when it is unpacked."""
    max_rows: int
    timeout_s: float
    local_only: bool = False
    """Nobody needs a key and only this machine can reach the endpoint: it must then be called by a name of its own."""


Told = Callable[[str, int], None]


class Guard:
    """Wraps an application."""

    def __init__(self, app: ASGIApp, *, keys: Keys, limits: Limits, told: Told = lambda path, status: None) -> None:
        self.app, self.keys, self.limits, self.told = app, keys, limits, told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse with one sentence."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
            else:
                await self.app(scope, receive, send)
            return
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        refused = self._refused(scope)
        try:
            if refused is None:
                async with asyncio.timeout(self.limits.timeout_s):
                    await self.app(scope, self._bounded(scope, receive), counted)
        except TimeoutError:
            told = f"not read and answered within {self.limits.timeout_s:g} s; send fewer rows at a time"
            refused = json_response({"error": told}, 408)
        except Exception:
            # Its words may hold rows or paths: they are for the log of the server alone.
            log.exception("a request failed")
            refused = failed()
        if refused is not None and not status:
            await refused(scope, receive, counted)
        self.told(scope["path"], status)

    def _refused(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        path = scope["path"]
        if self.limits.local_only and _host(headers.get("host", "")) not in HERE:
            return json_response({"error": "this endpoint is for this machine alone; call it by http://127.0.0.1"}, 403)
        if self.keys.required and path not in OPEN:
            level = self.keys.level(given_key(headers))
            if level is None:
                told = "a valid API key is needed: send the header `Authorization: Bearer KEY`"
                return json_response({"error": told}, 401, {"www-authenticate": 'Basic realm="pmray", charset="UTF-8"'})
            if level == "read" and scope["method"] not in ("GET", "HEAD"):
                return json_response({"error": "this API key may only look (GET)"}, 403)
        length = headers.get("content-length", "")
        most = self._most(headers)
        if length.isdigit() and int(length) > most:
            return json_response({"error": _too_large(most, int(length))}, 413)
        if headers.get("content-encoding", "identity").lower() != "identity":
            return json_response({"error": "send the body without content-encoding"}, 415)
        return None

    def _most(self, headers: Mapping[str, str]) -> int:
        upload = headers.get("content-type", "").partition(";")[0].strip().lower() in UPLOADS
        return self.limits.max_upload if upload else self.limits.max_body

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """Count what comes: a body that is sent in chunks does not say its size."""
        most = self._most(Headers(scope=scope))
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > most:
                    raise TooLarge(_too_large(most))
            return message

        return bounded


def failed() -> Response:
    """What is said when the server is at fault."""
    return json_response({"error": "the server failed on this request; its log says why"}, 500)


def _too_large(most: int, found: int | None = None) -> str:
    told = "this has more" if found is None else f"this has {found}"
    return f"a body of this kind may have {most} bytes, {told}"


def _host(value: str) -> str:
    """A ``Host`` header without its port.

    >>> _host("127.0.0.1:8000"), _host("[::1]:8000"), _host("LocalHost")
    ('127.0.0.1', '[::1]', 'localhost')
    """
    value = value.lower()
    if value.startswith("["):
        return value.partition("]")[0] + "]"
    return value.partition(":")[0]


def add_error_pages(app: Any) -> None:
    """Let an application say its own errors (404, 405, 422 …) in one sentence of JSON."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.requests import Request

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        return json_response({"error": f"{where}: {first['msg'].lower()}; see /docs for the form"}, 422)

    @app.exception_handler(TooLarge)
    async def too_large(request: Request, error: TooLarge) -> Response:
        return json_response({"error": str(error)}, 413)

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> Response:
        return json_response({"error": str(error)}, 503, {"retry-after": str(error.retry_after)})

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        return failed()  # Starlette raises it again: the guard writes it to the log

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        told = error.detail
        if error.status_code == 404 and told == "Not Found":
            told = "there is nothing at this path; see /docs"
        if error.status_code == 405:
            told = f"{request.method} is not among the methods of this path; see /docs"
        return json_response({"error": told}, error.status_code, dict(error.headers or {}))
