"""A replica as it is seen from outside: whether it lives, and its answers on their way."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from namm.serving.refusals import Refusal
from namm.serving.replica import HEARTBEAT, Asked, Message

TAKEN = 5.0  # seconds in which a request must have arrived
SILENCE = 20 * HEARTBEAT  # seconds without a sign of life after which nothing is sent to a replica
BROKEN = (RayError, RayServeException)  # what an answer raises when its replica is gone


class UnreachableError(Exception):
    """A replica that a request did not reach: another may serve it."""


class Reply:
    """An answer on its way. `close` gives it up, and the replica stops working on it."""

    def __init__(self, replica: int, stream: Any) -> None:
        self.replica, self._stream, self._over = replica, stream, False
        self.start: Message = {}

    @property
    def status(self) -> int:
        status: int = self.start["status"]
        return status

    async def begin(self) -> None:
        """Wait until it starts.

        Raises:
            UnreachableError: the request did not arrive.
            Refusal: the replica ended with the request, which may be why: nobody else is given it unasked.
        """
        try:
            await asyncio.wait_for(anext(self._stream), TAKEN)
        except (*BROKEN, TimeoutError, StopAsyncIteration) as error:
            self.close()
            raise UnreachableError from error
        try:
            self.start = await anext(self._stream)
        except (*BROKEN, StopAsyncIteration) as error:
            raise lost(self.replica) from error

    async def bodies(self) -> AsyncIterator[Message]:
        """What follows the start.

        Raises:
            Refusal: the replica ended.
        """
        more = True
        while more:
            try:
                message = await anext(self._stream)
            except (*BROKEN, StopAsyncIteration) as error:
                raise lost(self.replica) from error
            more = message.get("more_body", False)
            self._over = not more
            yield message

    def close(self) -> None:
        if not self._over:
            self._over = True
            self._stream.cancel()


class Remote:
    """One replica.

    Args:
        handle: of Ray Serve.
    """

    def __init__(self, number: int, handle: Any) -> None:
        self.number, self._handle = number, handle.options(stream=True)
        self._seen: float | None = None  # when it last gave a sign of life

    @property
    def up(self) -> bool:
        return self._seen is not None and time.monotonic() - self._seen < SILENCE

    async def follow(self) -> None:
        """Note whether it lives, and log what it logs, for ever."""
        while True:
            stream = self._handle.live.remote()
            try:
                async for records in stream:
                    self._seen = time.monotonic()
                    for record in records:
                        logging.getLogger(record.name).handle(record)
            except BROKEN:
                self._seen = None
            finally:
                stream.cancel()
            await asyncio.sleep(HEARTBEAT)

    async def ask(self, asked: Asked) -> Reply:
        """Hand on a request.

        Raises:
            UnreachableError, Refusal: see `Reply.begin`.
        """
        if not self.up:
            raise UnreachableError
        reply = Reply(self.number, self._handle.answer.remote(asked))
        try:
            await reply.begin()
        except BaseException:
            reply.close()
            raise
        return reply


def lost(replica: int) -> Refusal:
    return Refusal(
        503, f"expected a whole answer of replica {replica}; got an end of its process. Send the request again.",
        "replica_lost", retry_after=1,
    )  # fmt: skip


def nobody() -> Refusal:
    return Refusal(
        503, "expected a replica that answers; got none, or not the one that is needed. It is being started again: "
        "try again in 5 s.", "no_replica", retry_after=5,
    )  # fmt: skip
