"""A replica: the whole server without its port, in a process that Ray Serve starts, watches and starts again."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from logging.handlers import QueueHandler
from typing import Any

import torch

from namm.serving.settings import Settings

HEARTBEAT = 0.5  # seconds between two signs of life
Message = dict[str, Any]  # of ASGI
log = logging.getLogger("namm.serving")


@dataclass(frozen=True)
class Asked:
    """A request as it came in, with all of its body."""

    method: str
    path: str
    raw_path: bytes
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    client: tuple[str, int] | None = None

    def scope(self) -> dict[str, Any]:
        """For ASGI; by this version of it, a stream asks whether its client is still there."""
        return {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "scheme": "http",
            "method": self.method, "path": self.path, "raw_path": self.raw_path, "query_string": self.query,
            "root_path": "", "headers": list(self.headers), "client": self.client, "server": None,
        }  # fmt: skip


@dataclass(frozen=True)
class Offer:
    """What every replica takes.

    Attributes:
        models: what requests call them.
        body: bytes of a request.
        bodies: see `Limits.bodies`, of one replica.
    """

    models: tuple[str, ...]
    body: int
    bodies: int


class Records(QueueHandler):
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
    """Answers requests with the application of `settings`.

    Args:
        number: its place among the replicas, for the log.
        log_level: as for `logging`.

    Raises:
        NammError: see `Settings.app`.
    """

    def __init__(self, settings: Settings, number: int, log_level: str) -> None:
        self._records = Records(number)
        logger = logging.getLogger("namm")
        logger.handlers, logger.propagate = [self._records], False
        logger.setLevel(log_level.upper())
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self._app = settings.app()
        self._running: set[asyncio.Task[None]] = set()

    def offer(self) -> Offer:
        """The same for all replicas."""
        engine = self._app.state.engine
        return Offer(tuple(engine.host.served), engine.limits.body, engine.limits.bodies)

    def check_health(self) -> None:
        """Serve starts the replica again if this raises."""
        status = self._app.state.engine.status
        if status != "ok":
            raise RuntimeError(f"the engine is {status}")

    async def live(self) -> AsyncIterator[list[logging.LogRecord]]:
        """What is logged, and a sign of life every `HEARTBEAT` seconds."""
        while True:
            yield self._records.fetch()
            await asyncio.sleep(HEARTBEAT)

    async def answer(self, asked: Asked) -> AsyncIterator[Message | None]:
        """The application's messages as they come; first None, as a sign that the request is here."""
        yield None
        told: asyncio.Queue[Message | None] = asyncio.Queue()
        gone = asyncio.Event()
        task = asyncio.create_task(self._run(asked, told, gone))
        self._running.add(task)
        task.add_done_callback(self._ended)
        try:
            while (message := await told.get()) is not None:
                yield message
        finally:
            gone.set()

    async def _run(self, asked: Asked, told: asyncio.Queue[Message | None], gone: asyncio.Event) -> None:
        bodies = iter([asked.body])

        async def receive() -> Message:
            for body in bodies:
                return {"type": "http.request", "body": body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        try:
            await self._app(asked.scope(), receive, told.put)  # type: ignore[arg-type]
        finally:
            told.put_nowait(None)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A fault goes to the log, as with a web server; the application has told the client."""
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a request failed", exc_info=error)

    def __del__(self) -> None:
        """Put conversations to disk; called by Serve once nothing runs."""
        if hasattr(self, "_app"):
            self._app.state.engine.close()
