"""What every request passes before it is served: a look at its key, a limit on its body, an id, the log, a count."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from namm.serving.metrics import Metrics
from namm.serving.refusals import Refusal, answer_of, too_large, unauthorised

log = logging.getLogger("namm.serving")
ANYONE = "anyone"
CLIENT_CLOSED = 499  # nginx' status for a client that left
Result = TypeVar("Result")


class Gone(Exception):
    """The client left."""


class Keys:
    """API keys, of which only digests are kept. Without any, everyone is one and the same owner."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._owners = {_digest(key) for key in keys}

    def owner(self, authorization: str) -> str:
        """Who sends this header.

        Raises:
            Refusal: nobody that is known.
        """
        if not self._owners:
            return ANYONE
        scheme, _, key = authorization.partition(" ")
        owner = _digest(key.strip())
        if scheme.lower() != "bearer" or owner not in self._owners:
            raise unauthorised()
        return owner


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]


class Door:
    """What every request passes: a look at its key, a limit on its body, an id, the log, and a count.

    Args:
        keys: asked for by every path under `/v1/`, before anything of the body is read.
        limit: bytes of a body.
    """

    def __init__(self, app: ASGIApp, keys: Keys, limit: int, metrics: Metrics) -> None:
        self._app, self._keys, self._limit, self._metrics = app, keys, limit, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        ident = _id_of(headers.get(b"x-request-id"))
        noted: dict[str, Any] = {"request": ident, "method": scope["method"], "path": scope["path"]}
        scope.setdefault("state", {})["log"] = noted
        began, status = time.monotonic(), 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", ident.encode())]
            await send(message)

        try:
            if scope["path"].startswith("/v1/"):
                owner = self._keys.owner(headers.get(b"authorization", b"").decode("latin-1"))
                scope["state"]["owner"], noted["key"] = owner, owner[:8]
            body = await read_body(receive, headers, self._limit)
            await self._app(scope, _again(body, receive), told)
        except Refusal as error:  # raised outside of the routes
            await answer_of(error)(scope, receive, told)
        except Gone:
            status = CLIENT_CLOSED
        finally:
            route = scope.get("route")
            self._metrics.requests.labels(getattr(route, "path", "other"), str(status)).inc()
            level = logging.INFO if scope["path"].startswith("/v1/") else logging.DEBUG
            log.log(level, "request", extra={**noted, "status": status, "seconds": round(time.monotonic() - began, 4)})


def _id_of(given: bytes | None) -> str:
    """The client's own id for a request, if it has a decent one; it never names anything in the server."""
    known = (given or b"").decode("latin-1")
    decent = 0 < len(known) <= 128 and known.isascii() and known.isprintable()
    return known if decent else uuid4().hex


async def read_body(receive: Receive, headers: dict[bytes, bytes], limit: int) -> bytes:
    """The whole body.

    Raises:
        Gone: the client left before its end.
        Refusal: it is larger than the limit; no more of it than that is read.
    """
    given = headers.get(b"content-length", b"0")
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


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
