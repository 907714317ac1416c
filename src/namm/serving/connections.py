"""Connections of uvicorn that wait for a limited time, and of which there are not too many."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 512  # at once; a process has 1,024 open files by default
HEADER_SECONDS = 10.0  # in which all headers of a request must have come


class Connection(H11Protocol):
    """A connection that is closed if the headers of its next request do not come.

    Where there are too many, a newcomer takes the place of the one that has waited longest for a request. So whoever
    opens connections and sends little displaces others like it, and nobody whose request is under way.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._most, self.limit_concurrency = self.limit_concurrency, None  # uvicorn would refuse everybody beyond it
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waits(self) -> bool:
        """For the headers of a request."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()
        if self._most is not None and len(self.connections) > self._most:
            others = [one for one in self.connections if isinstance(one, Connection) and one.waits and one is not self]
            min(others, key=lambda one: one.since, default=self).transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.waits:
            self._stop()
        elif self._timer is None:  # kept alive, and the next request begins
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self.since = self.loop.time()
        self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def web_config(app: ASGIApp, connections: int = CONNECTIONS, **options: Any) -> uvicorn.Config:
    """How uvicorn serves this application.

    h11, because uvicorn's other implementation takes headers of any length; no web sockets, which nothing here serves
    and which would go past all of this.
    """
    return uvicorn.Config(
        app, http=Connection, ws="none", limit_concurrency=connections, log_config=None, access_log=False,
        server_header=False, timeout_graceful_shutdown=30, **options,
    )  # fmt: skip
