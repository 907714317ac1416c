"""Everything that makes a server, as one value that can be sent to a replica."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI

from namm.models import load_model
from namm.report.memory_page import memory_page
from namm.serving.access import Access
from namm.serving.app import create_app
from namm.serving.conversations import Conversations
from namm.serving.engine import Engine
from namm.serving.fatal import end_process
from namm.serving.host import Host, Limits
from namm.serving.metrics import Metrics
from namm.serving.service import Service
from namm.tasks import paragraphs

_TURN = 0.0005  # seconds that a thread may hold Python's lock while another waits; Python's own 5 ms add up, since the
# engine asks for it anew after every operation of the model


@dataclass(frozen=True)
class Settings:
    """What `namm serve` was asked for.

    Attributes:
        memories: names, as for `namm.attach`; the first is the default.
        budget: share of the tokens each may keep; None for a memory's own threshold.
        spill: folder for conversations that memory has no room for.
        access: who may ask.
    """

    model: str
    memories: tuple[str, ...]
    budget: float | None = 0.25
    update_interval: int | None = None
    name: str | None = None
    limits: Limits = field(default_factory=Limits)
    spill: Path | None = None
    access: Access = field(default_factory=Access)
    dtype: str | None = None
    device: str | None = None
    trust_remote_code: bool = False
    threads: int = 0

    def called(self) -> str:
        """The name of the model in requests."""
        path = Path(self.model).expanduser()
        return self.name or (path.resolve().name.removesuffix(".gguf") if path.exists() else self.model)

    def service(self, on_failure: Callable[[], None] = end_process) -> Service:
        """Load the model; its engine runs from now on.

        Args:
            on_failure: see `Engine`.

        Raises:
            ConfigurationError, ModelError, NotFoundError: see `Host` and `load_model`.
        """
        sys.setswitchinterval(_TURN)
        model, tokenizer = load_model(self.model, self.dtype, self.device, self.trust_remote_code)
        host = Host(
            self.called(), model, tokenizer, list(self.memories), self.budget, self.update_interval, self.limits.context
        )
        metrics = Metrics()
        conversations = Conversations(host, self.spill, self.limits.spilled)
        engine = Engine(host, self.limits, conversations, metrics, on_failure)
        return Service(engine, metrics)

    def app(self, on_failure: Callable[[], None] = end_process) -> FastAPI:
        """The application of one server; see `service`."""
        service = self.service(on_failure)
        app = create_app(service, self.limits, self.access, page())
        app.state.engine = service.engine
        return app


def page() -> str:
    """What `/` shows; it offers to try a text long enough to be forgotten in part, and a question about it."""
    fact = "The pass key is 60494. Remember it. 60494 is the pass key."
    chapter = paragraphs("persuasion")[40:52]
    text = "\n\n".join([*chapter[:4], fact, *chapter[4:]])
    question = "What is the pass key? Answer with the number only."
    return memory_page(live={"example": {"title": "a chapter of Persuasion", "text": text, "question": question}})
