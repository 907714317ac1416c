"""A tiny model in a folder, and real servers on real ports in front of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
import torch
import uvicorn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from namm.models import load_model
from namm.serving import Engine, Limits
from namm.serving.access import Access
from namm.serving.connections import web_config
from namm.serving.settings import Settings
from tests.serving.made import tokenizer

CONTEXT = 2048


@dataclass
class Running:
    """A server that listens."""

    url: str
    engine: Engine
    server: uvicorn.Server
    failed: threading.Event  # set where `namm serve` would end the process

    def client(self, key: str = "anything") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def http(self, key: str = "anything") -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=60)

    def busy(self, seconds: float = 10) -> None:
        """Wait until something runs."""
        until = time.monotonic() + seconds
        while not self.engine.state()["running"]:
            assert time.monotonic() < until, "nothing came to run"
            time.sleep(0.001)

    def idle(self, seconds: float = 10) -> None:
        """Wait until nothing runs."""
        until = time.monotonic() + seconds
        while self.engine.state()["running"] or self.engine.state()["waiting"]:
            assert time.monotonic() < until, "the server is still busy"
            time.sleep(0.02)


Serve = Callable[..., Running]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer model with a tokenizer of bytes and a chat template."""
    place = tmp_path_factory.mktemp("models") / "tiny"
    words = tokenizer()
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, eos_token_id=words.eos_token_id,
        bos_token_id=None, pad_token_id=words.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # so that small differences do not choose the token
    model.save_pretrained(place)
    words.save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def pair(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The same model and tokenizer, to compare with."""
    return load_model(folder)


@contextmanager
def running(settings: Settings) -> Iterator[Running]:
    """A server for these settings on a port of its own."""
    failed = threading.Event()
    app = settings.app(failed.set)
    server = uvicorn.Server(web_config(app, port=0))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(f"http://127.0.0.1:{port}", app.state.engine, server, failed)
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def serve(folder: Path) -> Iterator[Serve]:
    """Start servers of the tiny model; `limits` as for `Limits`, `keys`, `origins` and `hosts` as for `Access`."""
    with ExitStack() as stack:

        def start(memories: tuple[str, ...] = ("h2o",), **options: object) -> Running:
            limits = Limits(**options.pop("limits", {}))
            access = Access(**{name: options.pop(name) for name in ("keys", "origins", "hosts") if name in options})
            options = {"budget": 0.25, "update_interval": 32, "limits": limits, "access": access, **options}
            return stack.enter_context(running(Settings(str(folder), memories, **options)))

        yield start
