"""Several replicas are as one server: conversations stick, and the end of a replica costs its own requests only."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from namm.serving.access import Access
from namm.serving.host import Limits
from namm.serving.settings import Settings
from tests.serving.conftest import running
from tests.serving.made import tokenizer
from tests.serving.replicated import REPLICAS, Replicated, replicated

LONG = "The harbour was quiet, and the boats lay close together under the wall. " * 6
ORIGIN = "https://chat.example"
HEADER = "x-namm-replica"
ENDLESS = {str(tokenizer().eos_token_id): -100}  # a bias against the end of an answer
_numbers = count()


def options(folder: Path) -> Settings:
    limits = Limits(body=100_000, memory=64 << 20)
    return Settings(str(folder), ("h2o",), 0.25, 32, access=Access(("a", "b"), (ORIGIN,)), limits=limits, threads=1)


@pytest.fixture(scope="module", params=["here", pytest.param("ray", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest, folder: Path) -> Iterator[Replicated]:
    logger = logging.getLogger("namm")
    before = logger.handlers, logger.propagate, logger.level
    with replicated(options(folder), request.param) as found:
        yield found
    logger.handlers, logger.propagate, logger.level = before


class Chat:
    """A client that keeps a conversation going."""

    def __init__(self, server: Replicated, key: str = "a", text: str | None = None) -> None:
        self.http = server.http(key)
        self.messages: list[dict[str, str]] = []
        self.text = text or f"{next(_numbers)}: {LONG}"
        self.replica = -1

    def say(self, text: str | None = None, **more: Any) -> dict[str, Any]:
        self.messages.append({"role": "user", "content": text or self.text})
        answer = self.http.post("/v1/chat/completions", json=self.body(**more))
        assert answer.status_code == 200, answer.text
        told = answer.json()
        self.replica = int(answer.headers[HEADER])
        self.messages.append({"role": "assistant", "content": told["choices"][0]["message"]["content"]})
        return told

    def body(self, **more: Any) -> dict[str, Any]:
        return {"model": "tiny", "messages": self.messages, "max_tokens": 8, **more}

    def cached(self, text: str = "And then?") -> int:
        return self.say(text)["usage"]["prompt_tokens_details"]["cached_tokens"]


def on_each(server: Replicated) -> list[Chat]:
    """A chat on every replica."""
    found: dict[int, Chat] = {}
    while len(found) < REPLICAS:
        chat = Chat(server)
        chat.say()
        found.setdefault(chat.replica, chat)
    return [found[number] for number in range(REPLICAS)]


def test_conversations_stick(server: Replicated):
    chats = [Chat(server) for _ in range(6)]
    for chat in chats:
        chat.say()
    before = [chat.replica for chat in chats]
    assert set(before) == set(range(REPLICAS))
    assert all(chat.cached() > len(LONG) / 2 for chat in chats)
    assert [chat.replica for chat in chats] == before


def test_the_client_of_openai(server: Replicated):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="a", max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny"]
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": LONG}], stream=True, max_tokens=20
        )
    )
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    with pytest.raises(openai.AuthenticationError, match="expected a known API key"):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="c", max_retries=0).completions.create(
            model="tiny", prompt="x"
        )
    with pytest.raises(openai.NotFoundError, match="expected a model served here; got 'gpt'"):
        client.completions.create(model="gpt", prompt="x")


def test_streams_come_token_by_token(server: Replicated):
    chat = Chat(server)
    chat.messages = [{"role": "user", "content": chat.text}]
    body = chat.body(stream=True, max_tokens=1400, logit_bias=ENDLESS)
    with chat.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = (line for line in answer.iter_lines() if line)
        first = [next(lines) for _ in range(5)]
        assert server.health()["running"] == 1
        rest = list(lines)
    assert all(line.startswith("data: ") for line in first + rest)
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_memory(server: Replicated, stream: bool):
    chat = Chat(server)
    chat.messages = [{"role": "user", "content": chat.text}]
    server.wait(running=0)
    before = server.counted("namm_requests_cancelled_total")
    body = chat.body(stream=stream, max_tokens=1400, logit_bias=ENDLESS)
    if stream:
        with chat.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.wait(running=1)
    else:
        with pytest.raises(httpx.ReadTimeout):
            chat.http.post("/v1/chat/completions", json=body, timeout=0.3)
    server.wait(running=0, running_bytes=0, reserved_bytes=0)
    assert server.counted("namm_requests_cancelled_total") == before + 1


def test_a_replica_ends_and_comes_back(server: Replicated, folder: Path):
    victim, other = on_each(server)
    resting = on_each(server)[other.replica]
    waiting = Chat(server, text=victim.text)
    streams = {}
    for chat in (victim, other):
        body = chat.body(stream=True, max_tokens=1000, logit_bias=ENDLESS)
        body["messages"] = [*chat.messages, {"role": "user", "content": "And then?"}]
        streams[chat] = chat.http.stream("POST", "/v1/chat/completions", json=body)
    with streams[victim] as broken, streams[other] as whole:
        lines = broken.iter_lines(), whole.iter_lines()
        assert all(next(line).startswith("data: ") for line in lines)
        silent = _in_background(waiting, max_tokens=1400, logit_bias=ENDLESS)
        server.wait(running=3)
        server.kill(victim.replica)
        ended, going = ([line[6:] for line in rest if line] for rest in lines)
    assert ended[-1] == going[-1] == "[DONE]"
    assert json.loads(ended[-2])["error"]["code"] == "replica_lost"
    assert json.loads(going[-2])["choices"][0]["finish_reason"] == "length"
    refused = silent()
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "expected a whole answer" in refused.json()["error"]["message"]

    assert resting.cached() > 0
    assert victim.say("And then?")["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    with running(options(folder)) as fresh:
        asked = victim.body() | {"messages": victim.messages[:-1]}
        expected = fresh.http("a").post("/v1/chat/completions", json=asked).json()
    assert victim.messages[-1]["content"] == expected["choices"][0]["message"]["content"]

    server.wait(live=REPLICAS)
    assert victim.say("And now?")
    assert victim.cached() > 0
    assert victim.replica != other.replica


def _in_background(chat: Chat, **more: Any) -> Any:
    """Ask, and give a function that waits for the answer."""
    answers: list[httpx.Response] = []
    chat.messages = [{"role": "user", "content": chat.text}]
    asking = threading.Thread(
        target=lambda: answers.append(chat.http.post("/v1/chat/completions", json=chat.body(**more)))
    )
    asking.start()

    def answer() -> httpx.Response:
        asking.join(60)
        return answers[0]

    return answer


def test_a_replica_gives_way_to_others_as_much_as_one_server_does(server: Replicated):
    on_each(server)
    nice = [os.getpriority(os.PRIO_PROCESS, server.pid(number)) for number in range(REPLICAS)]
    assert nice == [os.getpriority(os.PRIO_PROCESS, 0)] * REPLICAS


def test_keys_do_not_share(server: Replicated):
    mine = Chat(server)
    ident = mine.say()["usage"]["namm"]["conversation"]
    theirs = Chat(server, "b")
    theirs.messages = list(mine.messages)
    assert theirs.cached() == 0
    known = {key: server.http(key).get("/v1/conversations").json()["data"] for key in ("a", "b")}
    assert ident in {one["id"] for one in known["a"]}
    assert not {one["id"] for one in known["a"]} & {one["id"] for one in known["b"]}
    assert server.http("b").delete(f"/v1/conversations/{ident}").status_code == 404
    assert server.http("a").delete(f"/v1/conversations/{ident}").status_code == 204
    assert server.http("a").delete(f"/v1/conversations/{ident}").status_code == 404
    assert server.http("c").get("/v1/conversations").status_code == 401


def test_what_no_server_takes(server: Replicated):
    http = server.http("a")
    upload = http.post("/v1/conversations", content=b"x" * 100)
    assert (upload.status_code, upload.json()["error"]["type"]) == (405, "invalid_request_error")
    large = http.post("/v1/completions", json={"model": "tiny", "prompt": "x" * 200_000})
    assert large.status_code == 413
    pieces = http.post("/v1/completions", content=(b"x" * 10_000 for _ in range(20)))
    assert (pieces.status_code, pieces.json()["error"]["code"]) == (413, "body_too_large")
    assert http.get("/v1/nothing").status_code == 404
    assert (
        http.post("/v1/chat/completions", content=b"{", headers={"Content-Type": "application/json"}).status_code == 400
    )


def test_pages_from_elsewhere_may_ask(server: Replicated):
    asks = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    before = httpx.options(f"{server.url}/v1/chat/completions", headers=asks)
    served, refused = (server.http(key).get("/v1/models", headers={"Origin": ORIGIN}) for key in "ac")
    assert [answer.status_code for answer in (before, served, refused)] == [200, 200, 401]
    for answer in (before, served, refused):
        assert answer.headers.get_list("access-control-allow-origin") == [ORIGIN]


def test_health_and_metrics_tell_of_all(server: Replicated):
    on_each(server)
    assert {"status": "ok", "replicas": REPLICAS, "live": REPLICAS}.items() <= server.health().items()
    lines = server.http().get("/metrics").text.splitlines()
    for number in range(REPLICAS):
        assert f'namm_replica_up{{replica="{number}"}} 1.0' in lines
        assert any(line.startswith(f'namm_tokens_read_total{{replica="{number}"}}') for line in lines)
    assert len([line for line in lines if line.startswith("# TYPE namm_tokens_read_total ")]) == 1
    assert "<html" in server.http().get("/").text
