"""A server that breaks at a word: `python -m tests.serving.broken {namm,uvicorn} FOLDER PORT`, or in a replica."""

from __future__ import annotations

import sys
from typing import Any

import torch
import uvicorn

from namm.cli import main
from namm.serving.engine import Engine
from namm.serving.exchange import Exchange
from namm.serving.requests import ChatRequest, CompletionRequest
from namm.serving.service import Service
from namm.serving.session import Session
from namm.serving.settings import Settings

LOST, FAULT, SLIP = "lose the device", "trip over a bug", "slip on the way to the engine"


def break_at_words() -> None:
    """Prompts with `LOST` or `FAULT` in them end the engine; those with `SLIP` do not come to it."""
    read, admit, exchange = Engine._read, Engine._admit, Service._exchange

    def broken_read(engine: Engine, session: Session) -> None:
        if LOST in session.prompt:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        read(engine, session)

    def broken_admit(engine: Engine) -> None:
        if any(FAULT in one.prompt for one in engine._scheduler.waiting):
            raise RuntimeError("a bug of the loop")
        admit(engine)

    async def broken_exchange(service: Service, request: ChatRequest | CompletionRequest, *more: Any) -> Exchange:
        if SLIP in repr(request):
            raise TypeError("a bug of the service")
        return await exchange(service, request, *more)

    Engine._read, Engine._admit = broken_read, broken_admit  # type: ignore[method-assign]
    Service._exchange = broken_exchange  # type: ignore[method-assign]


class Broken(Settings):
    """Of a server that breaks at words."""

    def service(self, *args: Any) -> Service:
        break_at_words()
        return super().service(*args)


if __name__ == "__main__":
    way, folder, port = sys.argv[1:]
    break_at_words()
    if way == "namm":
        options = ["--memory", "h2o", "--update-interval", "32", "--port", port, "--log-level", "warning"]
        sys.argv = ["namm", "serve", folder, *options]
        main()
    else:
        uvicorn.run(Settings(folder, ("h2o",), 0.25, 32).app(), port=int(port), log_level="warning")
