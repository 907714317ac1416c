"""What a server does, without HTTP: it answers, and tells what it remembers and counts. A replica does it elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Metric

from namm.errors import NotFoundError
from namm.serving.engine import Engine
from namm.serving.exchange import Exchange, exchange_of
from namm.serving.host import describe_model
from namm.serving.metrics import Metrics
from namm.serving.refusals import Refusal
from namm.serving.requests import ChatRequest, CompletionRequest
from namm.serving.session import Outbox

EVENTS = "text/event-stream"
_TOKENISERS = 2  # requests that are tokenised at once; more would take the engine's processors


@dataclass(frozen=True)
class AnswerStart:
    """How an answer begins; its body follows."""

    status: int = 200
    media_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


Answer = AsyncGenerator[AnswerStart | str, None]


class Backend(Protocol):
    """Who answers the requests of an application: an engine in this process, or replicas.

    Attributes:
        models: as `/v1/models` lists them.
        registry: counts what the application does.
    """

    models: list[dict[str, Any]]
    registry: CollectorRegistry

    def running(self) -> Any:
        """A context manager around all that follows."""

    def answer(self, request: ChatRequest | CompletionRequest, owner: str, cost: dict[str, Any]) -> Answer:
        """An `AnswerStart`, then the body in pieces. Closed before its end, the client is gone: what runs for it stops.

        Args:
            cost: what the answer has taken is written here, as far as it is known.
        """

    async def conversations(self, owner: str) -> list[dict[str, Any]]:
        """Those of this owner that can go on."""

    async def forget(self, owner: str, ident: str) -> None:
        """
        Raises:
            Refusal: this owner has no such conversation, or its file stays.
        """

    async def health(self) -> dict[str, Any]:
        """Its status, "ok" or another, and counts."""

    async def meters(self) -> list[Metric]:
        """For Prometheus."""


class Service:
    """Answers with an engine of this process, which is closed when the application ends."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self.engine, self.registry = engine, metrics.registry
        self.models = [describe_model(served, engine.host) for served in engine.host.served.values()]
        self._tokenisers = ThreadPoolExecutor(_TOKENISERS, "namm-tokeniser")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self.engine.close)

    async def answer(self, request: ChatRequest | CompletionRequest, owner: str, cost: dict[str, Any]) -> Answer:
        outbox, exchange = Outbox(asyncio.get_running_loop()), None
        try:
            exchange = await self._exchange(request, owner, outbox)
            self.engine.submit([one for one in exchange.sessions if not one.branch])
            if request.stream:
                yield AnswerStart(media_type=EVENTS)
                async for event in exchange.stream():
                    yield event
            else:
                whole = await exchange.whole()
                yield AnswerStart()
                yield whole
        except Refusal as error:
            yield AnswerStart(error.status, headers=error.headers())
            yield error.json()
        finally:
            outbox.closed = True
            if exchange is not None:
                cost.update(exchange.cost())

    async def _exchange(self, request: ChatRequest | CompletionRequest, owner: str, outbox: Outbox) -> Exchange:
        """Rendered and tokenised beside the event loop."""
        host, limits = self.engine.host, self.engine.limits
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tokenisers, exchange_of, request, owner, outbox, host, limits)

    async def conversations(self, owner: str) -> list[dict[str, Any]]:
        kept = self.engine.conversations
        return await self._ask(lambda: [one.describe() for one in kept.of(owner)])

    async def forget(self, owner: str, ident: str) -> None:
        kept = self.engine.conversations
        if not await self._ask(lambda: kept.remove(kept.get(owner, ident))):
            raise Refusal(
                500,
                f"expected the file of {ident} to be removed; got an error of the disk. It is forgotten until the "
                "server is started again: tell its operator, whose log has the reason.",
                "not_removed",
            )

    async def _ask(self, action: Callable[[], Any]) -> Any:
        """Something done by the engine's thread, which owns the conversations."""
        try:
            return await asyncio.wrap_future(self.engine.call(action))
        except NotFoundError as error:
            raise Refusal(404, str(error), "not_found") from error

    async def health(self) -> dict[str, Any]:
        return {"status": self.engine.status, **self.engine.state()}

    async def meters(self) -> list[Metric]:
        return list(self.registry.collect())
