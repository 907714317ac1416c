"""Servers with replicas to test: in Ray's processes, or in this one, where ends and starts are played."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from ray import serve
from ray.exceptions import ActorDiedError

from namm.serving.app import create_app
from namm.serving.connections import web_config
from namm.serving.deployment import deployed
from namm.serving.replica import Replica
from namm.serving.replicas import Replicas
from namm.serving.routing import order
from namm.serving.settings import Settings

REPLICAS = 2
NAME = f"test-{os.getpid()}"
PAUSE = 1.0  # seconds until an ended replica is there again, where that is played


class Replicated:
    """A server that listens, and a way to end its replicas."""

    def __init__(self, url: str) -> None:
        self.url = url

    def http(self, key: str = "a") -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=60)

    def health(self) -> dict[str, Any]:
        return self.http().get("/health").json()

    def counted(self, name: str) -> float:
        """A metric, of all replicas together."""
        lines = self.http().get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))

    def wait(self, seconds: float = 30, **counts: int) -> None:
        """Until health shows these counts."""
        until = time.monotonic() + seconds
        while (seen := self.health()) and any(seen.get(name, 0) != count for name, count in counts.items()):
            assert time.monotonic() < until, seen
            time.sleep(0.05)

    def pid(self, replica: int) -> int:
        raise NotImplementedError

    def kill(self, replica: int) -> None:
        raise NotImplementedError


class InRay(Replicated):
    def __init__(self, url: str, records: list[logging.LogRecord]) -> None:
        super().__init__(url)
        self._records = records

    def pid(self, replica: int) -> int:
        started = [record for record in self._records if record.getMessage() == "a replica started"]
        return next(record.pid for record in reversed(started) if record.replica == replica)

    def kill(self, replica: int) -> None:
        os.kill(self.pid(replica), signal.SIGKILL)


class Kept(logging.Handler):
    """Keeps what the replicas log."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class Stream:
    """An answer of a `Handle`: ends with an error when its replica does."""

    def __init__(self, handle: Handle, key: str, method: str, args: tuple[Any, ...]) -> None:
        self._handle, self._key, self._method, self._args = handle, key, method, args
        self._replica: Replica | None = None
        self._items: Any = None
        self._step: asyncio.Future[Any] | None = None

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        if self._items is None:
            self._replica = await self._handle.routed(self._key)
            self._items = getattr(self._replica, self._method)(*self._args)
        return await self._unless_it_ends(anext(self._items))

    def __await__(self) -> Any:
        return self._whole().__await__()

    async def _whole(self) -> Any:
        self._replica = await self._handle.routed(self._key)
        return await self._unless_it_ends(getattr(self._replica, self._method)(*self._args))

    async def _unless_it_ends(self, work: Any) -> Any:
        step = self._step = asyncio.ensure_future(work)
        while not step.done():
            await asyncio.wait({step}, timeout=0.01)
            if self._replica not in self._handle.replicas.values():
                raise ActorDiedError()
        return await step

    def cancel(self) -> None:
        if self._step is not None:
            self._step.cancel()


class Handle:
    """Stands for Serve's handle of replicas that are in this process, and for its router."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._key = settings, ""
        self.replicas: dict[int, Replica] = {}
        for number in range(REPLICAS):
            self._start(number)

    def _start(self, number: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            context = SimpleNamespace(rank=SimpleNamespace(rank=number))
            patch.setattr(serve, "get_replica_context", lambda: context)
            self.replicas[number] = Replica(self._settings, "warning")

    async def routed(self, key: str) -> Replica:
        while not self.replicas:
            await asyncio.sleep(0.01)
        return self.replicas[order(key, self.replicas)[0]]

    def options(self, *, session_id: str, stream: bool = False) -> Any:
        def method(name: str) -> Any:
            return SimpleNamespace(remote=lambda *args: Stream(self, session_id, name, args))

        return SimpleNamespace(answer=method("answer"), tell=method("tell"), fetch=method("fetch"))

    def end(self, number: int) -> None:
        """And start again after `PAUSE` seconds."""
        ended = self.replicas.pop(number)
        ended._service.engine.close()
        threading.Timer(PAUSE, self._start, (number,)).start()


class Here(Replicated):
    def __init__(self, url: str, handle: Handle) -> None:
        super().__init__(url)
        self._handle = handle

    def pid(self, replica: int) -> int:
        return os.getpid()

    def kill(self, replica: int) -> None:
        self._handle.end(replica)


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The address at which it listens."""
    server = uvicorn.Server(web_config(app, port=0))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


@contextmanager
def replicated(settings: Settings, where: str) -> Iterator[Replicated]:
    """A server with `REPLICAS` replicas, "here" or in "ray"."""
    if where == "ray":
        logger, kept = logging.getLogger("namm"), Kept()
        logger.addHandler(kept)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # or others that fill this machine end our replicas
            with deployed(settings, REPLICAS, "info", NAME) as app, listening(app) as url:
                yield InRay(url, kept.records)
        logger.removeHandler(kept)
        return
    handle = Handle(settings)
    backend = Replicas(handle, REPLICAS, handle.replicas[0].models())
    with listening(create_app(backend, settings.limits, settings.access, "<html>", REPLICAS)) as url:
        yield Here(url, handle)
