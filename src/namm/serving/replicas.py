"""Answering with replicas, of which Ray Serve's router chooses one for each request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from hashlib import sha256
from typing import Any
from uuid import uuid4

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayError, WorkerCrashedError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException, ReplicaUnavailableError

from namm.serving.exchange import event
from namm.serving.prompts import text_of
from namm.serving.refusals import Refusal, generation_failed
from namm.serving.replica import HEADER
from namm.serving.requests import ChatRequest, CompletionRequest
from namm.serving.service import EVENTS, Answer, AnswerStart

BEGINNING = 256  # characters, or tokens
HEARTBEAT = 0.5  # seconds between two looks at what replicas log
RAISED = (RayError, RayServeException)  # what Ray raises, a replica's own faults among it
LOST = (  # what of it says that a replica is gone
    RayActorError,
    WorkerCrashedError,
    NodeDiedError,
    OutOfMemoryError,  # Ray ended it, since its machine is full
    ReplicaUnavailableError,
    DeploymentUnavailableError,
)
_BUSY = (429, 503)  # statuses of a replica that might be another's chance
_SLOW = 10.0  # seconds after which a replica is left out of what all are asked
log = logging.getLogger("namm.serving")


def key_of(request: ChatRequest | CompletionRequest, owner: str) -> str:
    """The same for all requests of a conversation, which only grows: its owner and its beginning.

    Of a chat that is the messages up to the first one of a user; of a text its first `BEGINNING` characters or tokens.
    """
    begun: Any
    if isinstance(request, ChatRequest):
        said = [(one.role, text_of(one.content)) for one in request.messages]
        first = next((i for i, (role, _) in enumerate(said) if role == "user"), len(said))
        begun = said[: first + 1]
    else:
        begun = request.prompts[0][:BEGINNING]
    return sha256(repr((owner, begun)).encode("utf-8", "surrogatepass")).hexdigest()


class Replicas:
    """Answers with replicas.

    Args:
        handle: of their deployment.
        count: how many there are to be.
    """

    def __init__(self, handle: Any, count: int, models: list[dict[str, Any]]) -> None:
        self._handle, self._count = handle, count
        self.models, self.registry = models, CollectorRegistry()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        following = asyncio.create_task(self._follow())
        yield
        following.cancel()
        await asyncio.wait([following])

    async def _follow(self) -> None:
        """Log what the replicas log, for ever."""
        while True:
            with suppress(Refusal):  # that they cannot be fetched is logged, and the next ones may
                for records in (await self._all("fetch")).values():
                    for record in records:
                        logging.getLogger(record.name).handle(record)
            await asyncio.sleep(HEARTBEAT)

    async def answer(self, request: ChatRequest | CompletionRequest, owner: str, cost: dict[str, Any]) -> Answer:
        """Of the first replica that has a place for it.

        Nobody else is given a request that a replica took and did not answer, since it may be what ended it.
        """
        key = key_of(request, owner)
        for full in range(self._count):
            async with aclosing(self._asked(f"{key}/{full}", request, owner, cost)) as answer:
                async for item in answer:
                    others = full + 1 < self._count
                    if others and isinstance(item, AnswerStart) and item.status in _BUSY and HEADER in item.headers:
                        break
                    yield item
                else:
                    return

    async def _asked(
        self, session: str, request: ChatRequest | CompletionRequest, owner: str, cost: dict[str, Any]
    ) -> Answer:
        """What the replica of a session answers; if it fails within a stream, that is said instead of what is missing.

        Raises:
            Refusal: it failed before.
        """
        stream, start = self._handle.options(stream=True, session_id=session).answer.remote(request, owner), None
        try:
            async for item in stream:
                if isinstance(item, dict):
                    cost.update(item)
                else:
                    start = start or item
                    yield item
        except RAISED as error:
            refusal = _failed(error)
            if start is None or start.media_type != EVENTS:
                raise refusal from error
            yield event(refusal.json())
            yield event("[DONE]")
        finally:
            stream.cancel()  # if it goes on: the client is gone

    async def conversations(self, owner: str) -> list[dict[str, Any]]:
        """Those of all, oldest first."""
        told = list((await self._all("tell", "conversations", owner)).values())
        if not told:
            raise _nobody()
        if refused := [one for one in told if isinstance(one, Refusal)]:
            raise refused[0]
        return sorted((one for known in told for one in known), key=lambda one: one["created"])

    async def forget(self, owner: str, ident: str) -> None:
        """Whoever has it; who may have it and cannot be asked is told of."""
        told = (await self._all("tell", "forget", owner, ident)).values()
        if None in told:
            return
        failed = [one for one in told if one.status != 404]
        raise next(iter(failed or ([_nobody()] if len(told) < self._count else told)))

    async def health(self) -> dict[str, Any]:
        """The sums of what the live ones count, and the greatest age of a step."""
        known = list((await self._all("tell", "health")).values())
        names = sorted({name for one in known for name in one} - {"status"})
        together = {name: max if name == "step_age_seconds" else sum for name in names}
        counts = {name: made(one.get(name, 0) for one in known) for name, made in together.items()}
        status = "ok" if any(one["status"] == "ok" for one in known) else "unavailable"
        return {"status": status, "replicas": self._count, "live": len(known), **counts}

    async def meters(self) -> list[Metric]:
        """Those of all, each with a label `replica`, and those of the application."""
        told: dict[int, list[Metric]] = await self._all("tell", "meters")
        up = GaugeMetricFamily("namm_replica_up", "Whether a replica answers", labels=["replica"])
        families: dict[str, Metric] = {up.name: up}
        for number in range(self._count):
            up.add_metric([str(number)], int(number in told))
        for number, found in told.items():
            for meter in found:
                family = families.setdefault(meter.name, Metric(meter.name, meter.documentation, meter.type))
                family.samples += [one._replace(labels={"replica": str(number), **one.labels}) for one in meter.samples]
        return [*families.values(), *self.registry.collect()]

    async def _all(self, method: str, *args: str) -> dict[int, Any]:
        """What each replica returns, by its number; who does not answer is left out.

        Raises:
            Refusal: one has a fault.
        """
        told = await asyncio.gather(*(self._one(place, method, args) for place in range(self._count)))
        return dict(one for one in told if one is not None)

    async def _one(self, place: int, method: str, args: tuple[str, ...]) -> tuple[int, Any] | None:
        try:
            async with asyncio.timeout(_SLOW):
                handle = self._handle.options(session_id=f"/{place}")
                answer: tuple[int, Any] = await getattr(handle, method).remote(*args)
                return answer
        except (*LOST, TimeoutError):
            return None
        except RAISED as error:
            raise _failed(error) from error


def _failed(error: Exception) -> Refusal:
    """What a client is told of it; the log has the reason."""
    if not isinstance(error, LOST):
        ident = uuid4().hex
        log.error("a replica failed", exc_info=error, extra={"requests": [ident]})
        return generation_failed(ident)
    log.warning("a replica ended before its answer", extra={"error": str(error)})
    return Refusal(
        503,
        "expected a whole answer; got an end of the replica's process. Send the request again.",
        "replica_lost",
        retry_after=1,
    )


def _nobody() -> Refusal:
    return Refusal(
        503,
        "expected every replica; got none of one that is needed. It is being started again: try again in 5 s.",
        "no_replica",
        retry_after=5,
    )
