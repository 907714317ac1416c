"""Servers with replicas to test: in Ray's processes, or in this one, where ends and starts are played."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import uvicorn
from ray.exceptions import ActorDiedError

from namm.serving.connections import web_config
from namm.serving.front import Front
from namm.serving.remote import Remote
from namm.serving.replica import Replica
from namm.serving.replicas import deployed
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

    def kill(self, replica: int) -> None:
        raise NotImplementedError


class InRay(Replicated):
    def kill(self, replica: int) -> None:
        for place in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found = f":{NAME}-replica-{replica}" in place.read_text()
            except OSError:
                continue
            if found:
                os.kill(int(place.parent.name), signal.SIGKILL)


class Stream:
    """An answer of a `Handle`: ends with an error when its replica does."""

    def __init__(self, handle: Handle, method: str, args: tuple[Any, ...]) -> None:
        self._handle, self._method, self._args = handle, method, args
        self._replica: Replica | None = None
        self._items: Any = None
        self._step: asyncio.Future[Any] | None = None

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        while self._items is None:
            self._replica = self._handle.replica
            if self._replica is None:
                await asyncio.sleep(0.01)
            else:
                self._items = getattr(self._replica, self._method)(*self._args)
        step = self._step = asyncio.ensure_future(anext(self._items))
        while not step.done():
            await asyncio.wait({step}, timeout=0.01)
            if self._replica is not self._handle.replica:
                raise ActorDiedError()
        return await step

    def cancel(self) -> None:
        if self._step is not None:
            self._step.cancel()


class Handle:
    """Stands for Serve's handle of a replica that is in this process."""

    def __init__(self, settings: Settings, number: int) -> None:
        self._args = (settings, number, "warning")
        self.replica: Replica | None = Replica(*self._args)

    def options(self, **_: Any) -> Handle:
        return self

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *args: Stream(self, method, args))

    def end(self) -> None:
        """And start again after `PAUSE` seconds."""
        ended, self.replica = self.replica, None
        assert ended is not None
        ended._app.state.engine.close()

        def start() -> None:
            self.replica = Replica(*self._args)

        threading.Timer(PAUSE, start).start()


class Here(Replicated):
    def __init__(self, url: str, handles: list[Handle]) -> None:
        super().__init__(url)
        self._handles = handles

    def kill(self, replica: int) -> None:
        self._handles[replica].end()


@contextmanager
def listening(front: Front) -> Iterator[str]:
    """The address at which it listens."""
    server = uvicorn.Server(web_config(front, port=0))
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
        with deployed(settings, REPLICAS, name=NAME) as front, listening(front) as url:
            yield InRay(url)
        return
    handles = [Handle(settings, number) for number in range(REPLICAS)]
    remotes = [Remote(*pair) for pair in enumerate(handles)]
    assert handles[0].replica is not None
    with listening(Front(remotes, handles[0].replica.offer(), settings.access)) as url:
        yield Here(url, handles)
