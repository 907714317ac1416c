"""A stand-in for the server: it plays recorded conversations over the protocol that the live page speaks.

Its model is a random one that reads characters, so its answers are nonsense, and its memories are real: what is played
was recorded from caches that forgot.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

import namm
from namm.memory.cache import make_plan
from namm.report.memory_page import memory_page
from namm.trace import Event, Recorder, end_event, rule_of, shape_of, start_event, token_event
from tests.report.test_trace import character_tokenizer
from tests.zoo import causal_model

INTERVAL, WRITTEN = 64, 24
BUDGET = namm.Budget(fraction=0.25)
READ_AT_ONCE = 32
EXAMPLE = {
    "title": "the beginning of a novel",
    "text": "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of folly. "
    * 6,
    "question": "Which times were they?",
}


@dataclass
class Conversation:
    """One memory that reads what it is told and answers; only what is new is read."""

    name: str
    memory: str
    read: list[str] = field(default_factory=list)
    cache: namm.MemoryCache | None = None

    def answer(self, prompt: str) -> Iterator[Event | str]:
        """Events, and the pieces of the answer. `prompt` is the whole conversation."""
        model, tokenizer = causal_model("llama"), character_tokenizer()
        if self.cache is None or not prompt.startswith("".join(self.read)):
            self.cache, self.read = namm.MemoryCache(model.config, self.memory, BUDGET, INTERVAL), []
        tokens, recorder, done = list(prompt), Recorder(self.cache), len(self.read)
        yield start_event(
            self.cache, shape_of(model.config, model.dtype), model="standin", memory=self.name,
            rule=rule_of(make_plan(self.memory, BUDGET, INTERVAL)), interval=INTERVAL, tokens=tokens,
        )  # fmt: skip
        with torch.inference_mode():
            for block in torch.tensor([tokenizer(prompt)["input_ids"][done:]]).split(READ_AT_ONCE, dim=1):
                logits = model(block, past_key_values=self.cache).logits
                yield recorder.after(self.cache)
            self.read = tokens
            for _ in range(WRITTEN):
                token = int(logits[0, -1, 1:96].argmax()) + 1  # neither the unknown token nor a line end
                yield token_event([tokenizer.decode([token])])
                yield tokenizer.decode([token])
                self.read.append(tokenizer.decode([token]))
                logits = model(torch.tensor([[token]]), past_key_values=self.cache).logits
                yield recorder.after(self.cache)
        yield end_event(self.cache)


class StandIn(ThreadingHTTPServer):
    """Serves the page and the protocol on a free port.

    Attributes:
        key: if set, what requests must bring.
        pause: seconds between two events.
        fails: message of the error that the next answer ends in, after its first events.
        requests: bodies of the chat requests that came.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.key, self.pause, self.fails = "", 0.01, ""
        self.requests: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.start_anew()

    def start_anew(self) -> None:
        self.conversations = {name: Conversation(name, name) for name in ("h2o", "streaming")}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        if self.path == "/":
            self._send(200, memory_page(live={"example": EXAMPLE}).encode(), "text/html; charset=utf-8")
        elif self.path == "/v1/models" and self._allowed():
            rule = rule_of(make_plan("h2o", BUDGET, INTERVAL))
            models = [{"id": f"standin+{name}", "object": "model", "namm": {"memory": name, "rule": rule}}
                      for name in self.server.conversations]  # fmt: skip
            self._send(200, json.dumps({"object": "list", "data": models}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed():
            return
        self.server.requests.append(body)
        prompt = "".join(f"{one['content']}\n" if one["role"] == "user" else one["content"] for one in body["messages"])
        if not prompt.isascii():
            self._send(400, json.dumps({"error": {"message": "The stand-in reads ASCII only."}}).encode())
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            self._answer(self.server.conversations[body["model"].partition("+")[2]], prompt)
        except (BrokenPipeError, ConnectionResetError):
            self.server.start_anew()  # the reader stopped listening

    def _answer(self, conversation: Conversation, prompt: str) -> None:
        cached = len(conversation.read)
        for part in conversation.answer(prompt):
            if isinstance(part, str):
                self._event({"choices": [{"index": 0, "delta": {"content": part}}]})
            else:
                self._event({"choices": [], "namm": {"event": part}})
                time.sleep(self.server.pause)
                if self.server.fails and part["type"] == "update":
                    self._event({"error": {"message": self.server.fails}})
                    self.server.fails = ""
                    return
        assert conversation.cache is not None
        report = conversation.cache.memory()
        usage = {
            "prompt_tokens": len(prompt), "completion_tokens": WRITTEN,
            "prompt_tokens_details": {"cached_tokens": cached},
            "namm": {"kept_tokens": report.slots, "bytes_held": report.bytes_held, "bytes_full": report.bytes_full},
        }  # fmt: skip
        self._event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, chunk: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    def _allowed(self) -> bool:
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            self._send(401, json.dumps({"error": {"message": "A key is needed."}}).encode())
            return False
        return True

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@contextmanager
def serving() -> Iterator[StandIn]:
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    with serving() as running:
        running.pause = 0.15
        print(running.url)
        threading.Event().wait()
