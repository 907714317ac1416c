"""A replica: an engine in a process that Ray Serve starts, watches and starts again."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from logging.handlers import QueueHandler
from typing import Any

import torch
from ray import serve

from namm.serving.refusals import Refusal
from namm.serving.requests import ChatRequest, CompletionRequest
from namm.serving.routing import NUMBER
from namm.serving.service import AnswerStart
from namm.serving.settings import Settings

HEADER = "X-NAMM-Replica"  # of an answer: who gave it
log = logging.getLogger("namm.serving")


class _Records(QueueHandler):
    """Keeps what is logged until it is fetched; the oldest are lost if nobody comes."""

    def __init__(self, replica: int) -> None:
        self._replica, self._kept = replica, deque[logging.LogRecord](maxlen=1000)
        super().__init__(self._kept)  # type: ignore[arg-type]

    def enqueue(self, record: logging.LogRecord) -> None:
        record.replica = self._replica
        self._kept.append(record)

    def fetch(self) -> list[logging.LogRecord]:
        return [self._kept.popleft() for _ in range(len(self._kept))]


class Replica:
    """A `Service` for Ray Serve.

    Args:
        log_level: as for `logging`.

    Raises:
        NammError: see `Settings.service`.
    """

    def __init__(self, settings: Settings, log_level: str) -> None:
        self.number = serve.get_replica_context().rank.rank
        self._records = _Records(self.number)
        logger = logging.getLogger("namm")
        logger.handlers, logger.propagate = [self._records], False
        logger.setLevel(log_level.upper())
        if settings.threads:
            torch.set_num_threads(settings.threads)
        spill = settings.spill and settings.spill / f"replica-{self.number}"  # nobody adopts another's
        self._service = replace(settings, spill=spill).service()
        log.info("a replica started", extra={"pid": os.getpid()})

    def record_replica_metadata(self) -> dict[str, int]:
        """What the router knows of it."""
        return {NUMBER: self.number}

    def check_health(self) -> None:
        """Serve starts the replica again if this raises."""
        status = self._service.engine.status
        if status != "ok":
            raise RuntimeError(f"the engine is {status}")

    async def answer(
        self, request: ChatRequest | CompletionRequest, owner: str
    ) -> AsyncIterator[AnswerStart | str | dict[str, Any]]:
        """See `Backend.answer`; in the end, what it has taken."""
        cost: dict[str, Any] = {}
        async with aclosing(self._service.answer(request, owner, cost)) as answer:
            async for item in answer:
                if isinstance(item, AnswerStart):
                    yield replace(item, headers={**item.headers, HEADER: str(self.number)})
                else:
                    yield item
        yield cost

    async def tell(self, what: str, *args: str) -> tuple[int, Any]:
        """Its number, and what a method of `Backend` returns or refuses."""
        try:
            return self.number, await getattr(self._service, what)(*args)
        except Refusal as refusal:
            return self.number, refusal

    async def fetch(self) -> tuple[int, list[logging.LogRecord]]:
        """Its number, and what was logged since the last time."""
        return self.number, self._records.fetch()

    def models(self) -> list[dict[str, Any]]:
        """The same for all replicas."""
        return self._service.models

    def __del__(self) -> None:
        """Put conversations to disk; called by Serve once nothing runs."""
        if hasattr(self, "_service"):
            self._service.engine.close()
