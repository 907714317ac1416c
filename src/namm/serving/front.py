"""The front of several replicas: reads requests, chooses who answers, hands answers on as they come."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from uuid import uuid4

from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from namm.serving import merge
from namm.serving.access import Access
from namm.serving.middleware import TAKE_A_BODY, AccessMiddleware, Gone, unless_gone
from namm.serving.refusals import Refusal
from namm.serving.remote import Remote, Reply, UnreachableError, nobody
from namm.serving.replica import Asked, Offer
from namm.serving.sticky import key_of, order

log = logging.getLogger("namm.serving")
CONVERSATIONS = "/v1/conversations"
REPLICA = b"x-namm-replica"  # header of an answer: who gave it
_SLOW = 30.0  # seconds after which a replica is left out of what all are asked
_BUSY = frozenset({429, 503})  # statuses of a replica that might be another's chance
_NOT_HERE = frozenset({404})


class Front:
    """An ASGI application that answers with replicas.

    Args:
        offer: what the replicas take; limits on bodies are kept here already.
        access: who may ask; replicas look at keys as well, to know whose a request is.
    """

    def __init__(self, replicas: Sequence[Remote], offer: Offer, access: Access) -> None:
        self._replicas, self.offer = replicas, offer
        self._http = AccessMiddleware(self._serve, access, offer.body, offer.bodies * len(replicas))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            with suppress(Gone):
                await self._http(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        following = [asyncio.create_task(one.follow()) for one in self._replicas]
        while not all(one.up for one in self._replicas):
            await asyncio.sleep(0.05)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for task in following:
            task.cancel()
        await asyncio.wait(following)
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Raises:
            Gone, Refusal: nobody could answer.
        """
        method, path, body = scope["method"], scope["path"], (await receive())["body"]
        headers = dict(scope["headers"])
        headers.pop(b"origin", None)  # was looked at, and replicas allow none
        headers.setdefault(b"x-request-id", uuid4().hex.encode())
        asked = Asked(
            method, path, scope["raw_path"], scope["query_string"], tuple(headers.items()), body, scope["client"]
        )
        key = key_of(path, scope["state"]["owner"], body) if (method, path) in TAKE_A_BODY else None
        await unless_gone(receive, self._answer(asked, key, scope, receive, send))

    # -- who answers ---------------------------------------------------------------------------------------------------

    async def _answer(self, asked: Asked, key: str | None, scope: Scope, receive: Receive, send: Send) -> None:
        if asked.method == "GET" and asked.path in ("/health", "/metrics", CONVERSATIONS):
            await (await self._together(asked))(scope, receive, send)
            return
        everyone = range(len(self._replicas))
        if key is not None:
            reply = await self._first(asked, order(key, len(everyone)), _BUSY)
        elif asked.path.startswith(f"{CONVERSATIONS}/"):
            reply = await self._first(asked, everyone, _NOT_HERE)
        else:
            reply = await self._first(asked, everyone, _BUSY)
        await _hand_on(reply, send)

    async def _first(self, asked: Asked, numbers: Iterable[int], passed_over: frozenset[int]) -> Reply:
        """The first answer in this order whose status is not `passed_over`; if there is none, the last one.

        Raises:
            Refusal: nobody could be asked, or somebody who might have answered could not.
        """
        last, missing = None, False
        for number in numbers:
            try:
                reply = await self._replicas[number].ask(asked)
            except UnreachableError:
                missing = True
                continue
            if last is not None:
                last.close()
            if reply.status not in passed_over:
                return reply
            last = reply
        if last is None or (missing and passed_over is _NOT_HERE):
            raise nobody()
        return last

    async def _together(self, asked: Asked) -> Response:
        """What all live replicas say, as one."""
        wholes = await asyncio.gather(*(self._whole(one, asked) for one in self._replicas))
        told = {one.number: whole for one, whole in zip(self._replicas, wholes, strict=True) if whole is not None}
        replicas = len(self._replicas)
        if asked.path == "/metrics":
            return PlainTextResponse(
                merge.metrics({number: body for number, (_, body) in told.items()}, replicas),
                media_type="text/plain; version=0.0.4; charset=utf-8",
            )
        if asked.path == "/health":
            found = merge.health({number: body for number, (_, body) in told.items()}, replicas)
            return JSONResponse(found, 200 if found["status"] == "ok" else 503)
        if not told:
            raise nobody()
        refused = [(status, body) for status, body in told.values() if status != 200]
        if refused:
            return Response(refused[0][1], refused[0][0], media_type="application/json")
        return JSONResponse(merge.lists({number: body for number, (_, body) in told.items()}))

    async def _whole(self, replica: Remote, asked: Asked) -> tuple[int, bytes] | None:
        """Status and body of an answer; None if it does not come."""
        try:
            async with asyncio.timeout(_SLOW):
                reply = await replica.ask(asked)
                return reply.status, b"".join([message.get("body", b"") async for message in reply.bodies()])
        except (UnreachableError, Refusal, TimeoutError):
            return None


# -- bodies ------------------------------------------------------------------------------------------------------------


async def _hand_on(reply: Reply, send: Send) -> None:
    """Send an answer as it comes. If it ends too early, a stream of events says so; else the connection breaks."""
    headers = [*reply.start.get("headers", []), (REPLICA, str(reply.replica).encode())]
    try:
        await send({**reply.start, "headers": headers})
        async for message in reply.bodies():
            await send(message)
    except Refusal as error:
        if not dict(headers).get(b"content-type", b"").startswith(b"text/event-stream"):
            raise ConnectionError(error.message) from error
        told = f"data: {json.dumps(error.body())}\n\ndata: [DONE]\n\n"
        await send({"type": "http.response.body", "body": told.encode()})
    finally:
        reply.close()
