"""What every request passes before it is served: the log and the counts, then who asks, then the body."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable
from typing import Any, TypeVar
from uuid import uuid4

from fastapi.middleware.cors import CORSMiddleware
from prometheus_client import CollectorRegistry, Counter
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from namm.serving.access import OPEN, Access, Keys
from namm.serving.refusals import Refusal, answer_of, too_large
from namm.serving.requests import ChatRequest, CompletionRequest

log = logging.getLogger("namm.serving")
CLIENT_CLOSED = 499  # nginx' status for a client that left
_TAKE_A_BODY = frozenset({("POST", ChatRequest.path), ("POST", CompletionRequest.path)})
BODY_SECONDS = 60.0  # in which all of a body must have come
Result = TypeVar("Result")


class Gone(Exception):
    """The client left."""


class RequestLog:
    """Gives each request an id, logs it when it is over, and counts it."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        self._requests = Counter(
            "namm_requests", "Answered requests by path and status", ("path", "status"), registry=registry
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        ident = _id_of(Headers(scope=scope).get("x-request-id", ""))
        noted: dict[str, Any] = {"request": ident, "method": scope["method"], "path": scope["path"]}
        scope.setdefault("state", {})["log"] = noted
        began, status = time.monotonic(), 500  # unless an answer begins

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", ident.encode())]
            await send(message)

        try:
            await self._app(scope, receive, told)
        except Gone:
            status = CLIENT_CLOSED
        finally:
            if owner := scope["state"].get("owner"):
                noted["key"] = owner[:8]
            route = scope.get("route")
            self._requests.labels(getattr(route, "path", "other"), str(status)).inc()
            level = logging.INFO if scope["path"].startswith("/v1/") else logging.DEBUG
            log.log(level, "request", extra={**noted, "status": status, "seconds": round(time.monotonic() - began, 4)})


def _id_of(given: str) -> str:
    """The client's own id for a request, if it has a decent one; it never names anything in the server."""
    decent = 0 < len(given) <= 128 and given.isascii() and given.isprintable()
    return given if decent else uuid4().hex


class AccessMiddleware:
    """Looks at host, origin and key before anything of a body is read, and answers what is refused.

    The application finds the client in `scope["state"]["owner"]`, and no body on a route that takes none.

    Args:
        body: bytes of a body.
        bodies: that one client may be sending at once.
    """

    def __init__(self, app: ASGIApp, access: Access, body: int, bodies: int) -> None:
        self._app, self._access, self._keys, self._body, self._bodies = app, access, Keys(access.keys), body, bodies
        self._sending: defaultdict[str, int] = defaultdict(int)
        self._inner: ASGIApp = self._admit
        if access.origins:
            self._inner = CORSMiddleware(self._admit, access.origins, allow_methods=["*"], allow_headers=["*"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._access.check_origin(Headers(scope=scope))
        except Refusal as error:
            await _refuse(error, scope, receive, send)
        else:
            await self._inner(scope, receive, send)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refused in here, an allowed page can read why."""
        headers, state = Headers(scope=scope), scope.setdefault("state", {})
        try:
            if scope["path"] not in OPEN:
                state["owner"] = self._keys.owner(headers.get("authorization", ""))
            body = b""
            if (scope["method"], scope["path"]) in _TAKE_A_BODY:
                body = await self._read(state["owner"], headers, receive)
            await self._app(scope, _again(body, receive), send)
        except Refusal as error:
            await _refuse(error, scope, receive, send)

    async def _read(self, owner: str, headers: Headers, receive: Receive) -> bytes:
        if self._sending[owner] >= self._bodies:
            expected = (
                f"expected at most {self._bodies} bodies of this key on their way at once; got more. Try again in 1 s."
            )
            raise Refusal(429, expected, "too_many_bodies", retry_after=1)
        self._sending[owner] += 1
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await _read_body(receive, headers, self._body)
        except TimeoutError as error:
            expected = f"expected the whole body within {BODY_SECONDS:g} s; got a part. Send it again."
            raise Refusal(408, expected, "body_too_slow") from error
        finally:
            self._sending[owner] -= 1


async def _refuse(error: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    scope["state"]["log"]["code"] = error.code
    await answer_of(error)(scope, receive, send)


async def _read_body(receive: Receive, headers: Headers, limit: int) -> bytes:
    """The whole body.

    Raises:
        Gone: the client left before its end.
        Refusal: it is larger than the limit, in bytes; no more of it than that is read.
    """
    given = headers.get("content-length", "0")
    if given.isdigit() and int(given) > limit:
        raise too_large(limit)
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > limit:
            raise too_large(limit)
    return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives the body once, then what else comes: that the client left."""
    parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def given() -> Message:
        return parts.pop() if parts else await receive()

    return given


async def unless_gone(receive: Receive, work: Awaitable[Result]) -> Result:
    """The result of `work`, which is given up when the client leaves.

    Raises:
        Gone: it left.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.wait({task, gone})  # nobody works on it when this is over


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
