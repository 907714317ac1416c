"""What fails costs its own request; what nobody can survive ends the engine, and whoever waits is told."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import openai
import pytest
import torch
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RaySystemError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve.exceptions import DeploymentUnavailableError

from namm.memory.cache import MemoryCache
from namm.serving import replica, replicas
from namm.serving.fatal import is_fatal
from namm.serving.refusals import Refusal
from namm.serving.replicas import Replicas
from namm.serving.requests import CompletionRequest
from namm.serving.service import EVENTS, AnswerStart
from tests.serving.conftest import Running, Serve
from tests.serving.test_admission import SAID, stream
from tests.serving.test_answers import LONG
from tests.serving.test_conversations import Chat, limit

SECRET = "no such table at /srv/inside"


class Broken:
    """Stands in for a function that raises when `text` is being read; all else is as before."""

    def __init__(self, server: Running, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str = LONG) -> None:
        read = server.engine._read

        def broken(session):
            if text in session.prompt:
                raise error
            read(session)

        monkeypatch.setattr(server.engine, "_read", broken)


def loop_fault(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next request makes the loop itself fail."""
    real = server.engine._drop_cancelled

    def broken() -> None:
        if any(LONG in one.prompt for one in server.engine._scheduler.waiting):
            raise RuntimeError(SECRET)
        real()

    monkeypatch.setattr(server.engine, "_drop_cancelled", broken)


def device_fault(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next request is the last that the device sees."""
    Broken(server, monkeypatch, torch.AcceleratorError(f"CUDA error: device-side assert triggered, {SECRET}"))


@pytest.fixture
def other(serve: Serve) -> Iterator[tuple[Running, Iterator[str]]]:
    """A server, and the lines of a stream that somebody else has there."""
    server = serve(limits={"chunk": 16})
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 1900, "stream": True}
    body["logit_bias"] = {str(server.engine.host.tokenizer.eos_token_id): -100}
    with server.http("b").stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = (line[6:] for line in answer.iter_lines() if line)
        for _ in range(4):
            next(lines)
        yield server, lines


@pytest.mark.parametrize(
    "error",
    [RuntimeError(SECRET), torch.OutOfMemoryError(f"CUDA out of memory, {SECRET}"), AssertionError(SECRET),
     torch.AcceleratorError(f"CUDA error: out of memory, {SECRET}"), MemoryError(SECRET)],
)  # fmt: skip
@pytest.mark.parametrize("streamed", [True, False])
def test_a_failure_costs_its_own_request_only(other, monkeypatch, caplog, error: Exception, streamed: bool):
    server, lines = other
    Broken(server, monkeypatch, error)
    asked = {"model": "tiny", "messages": SAID, "max_tokens": 5, "stream": streamed}
    with caplog.at_level(logging.ERROR, "namm.serving"):
        answer = server.http().post("/v1/chat/completions", json=asked)
    if streamed:
        *_, told, done = (line[6:] for line in answer.text.splitlines() if line)
        assert (answer.status_code, done) == (200, "[DONE]")
    else:
        told = answer.text
        assert answer.status_code == 500
    failure = json.loads(told)["error"]
    assert failure["code"] == "generation_failed"
    assert SECRET not in answer.text
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.exc_info[1] is error
    assert f"under {record.requests[0]}." in failure["message"]
    monkeypatch.undo()
    assert json.loads(next(lines))["choices"]
    assert Chat(server).say(LONG).usage.completion_tokens == 12
    assert server.http().get("/health").status_code == 200
    assert not server.failed.is_set()


def test_what_cannot_be_put_to_rest_costs_its_own_request(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    server = serve()
    real = MemoryCache.trim
    monkeypatch.setattr(MemoryCache, "trim", lambda cache: (_ for _ in ()).throw(RuntimeError(SECRET)))
    with pytest.raises(openai.APIError, match="expected an answer; got a fault of the server"):
        list(stream(server, max_tokens=5))
    monkeypatch.setattr(MemoryCache, "trim", real)
    assert Chat(server).say(LONG).usage.completion_tokens == 12


@pytest.mark.parametrize("stage", ["find", "touch", "make_room"])
def test_a_failure_before_the_first_token_costs_its_own_request(serve: Serve, monkeypatch, stage: str):
    """A prompt that trips the search must not end the server of all."""
    server = serve(("full",), limits={"memory": limit(serve(("full",)), 1.6)})
    chats = [Chat(server) for _ in range(2)]
    for number, chat in enumerate(chats):
        chat.say(f"{number} {LONG}")
    broken = threading.Event()

    def fail(*_) -> None:
        broken.set()
        raise ValueError(SECRET)

    monkeypatch.setattr(server.engine.conversations, stage, fail)
    with pytest.raises(openai.InternalServerError, match="expected an answer; got a fault of the server"):
        chats[1].say(LONG)
    assert broken.is_set()
    monkeypatch.undo()
    assert server.engine.status == "ok"
    assert not server.failed.is_set()
    assert Chat(server).say(LONG).usage.completion_tokens == 12


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("fault", [loop_fault, device_fault])
def test_an_engine_that_cannot_go_on_tells_everybody(other, monkeypatch, caplog, fault: Callable[..., None]):
    server, lines = other
    fault(server, monkeypatch)
    answer = server.http().post("/v1/chat/completions", json={"model": "tiny", "messages": SAID, "max_tokens": 5})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "generation_failed"
    *_, told, done = lines
    assert (json.loads(told)["error"]["code"], done) == ("generation_failed", "[DONE]")
    assert SECRET not in told + answer.text
    assert server.failed.wait(10)
    (record,) = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert SECRET in str(record.exc_info[1])
    health = server.http().get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "unavailable")
    with pytest.raises(openai.InternalServerError, match="shutting down"):
        server.client().chat.completions.create(model="tiny", messages=SAID, max_tokens=5)
    assert server.http().get("/v1/conversations").status_code == 503


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_what_a_failed_engine_was_asked(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    server = serve()
    monkeypatch.setattr(server.engine.conversations, "of", lambda owner: (_ for _ in ()).throw(RuntimeError(SECRET)))
    answer = server.http().get("/v1/conversations")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
    assert server.failed.wait(10)


def test_only_a_lost_device_is_fatal(monkeypatch: pytest.MonkeyPatch):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    lost = torch.AcceleratorError("CUDA error: device-side assert triggered")
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    assert is_fatal(lost, gpu)
    assert is_fatal(lost, cpu)
    for harmless in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("a bug"), KeyError("a bug")):
        assert not is_fatal(harmless, gpu)

    def lost_already(device: torch.device) -> None:
        raise lost

    monkeypatch.setattr(torch.accelerator, "synchronize", lost_already)
    assert is_fatal(RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), gpu)
    assert not is_fatal(RuntimeError("a bug"), cpu)


def test_health_knows_a_step_that_does_not_end(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    server = serve(limits={"step_timeout": 1})
    go_on, reached = threading.Event(), threading.Event()
    read = server.engine._read

    def blocked(session) -> None:
        reached.set()
        assert go_on.wait(60)
        read(session)

    idle = server.http().get("/health")
    assert (idle.status_code, idle.json()["step_age_seconds"]) == (200, 0)
    monkeypatch.setattr(server.engine, "_read", blocked)
    asking = threading.Thread(target=lambda: Chat(server).say(LONG))
    asking.start()
    assert reached.wait(10)
    while (health := server.http().get("/health")).status_code == 200:
        assert health.json()["status"] == "ok"
        assert health.json()["step_age_seconds"] < 1.5
    assert health.status_code == 503
    assert health.json()["status"] == "stalled"
    assert health.json()["step_age_seconds"] >= 1
    line = next(text for text in server.http().get("/metrics").text.splitlines() if text.startswith("namm_step_age"))
    assert float(line.split()[1]) >= 1
    go_on.set()
    asking.join(60)
    server.idle()
    after = server.http().get("/health")
    assert (after.status_code, after.json()["status"], after.json()["step_age_seconds"]) == (200, "ok", 0)


def test_an_idle_engine_is_not_stalled_by_the_request_that_wakes_it(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    server = serve(limits={"step_timeout": 1})
    server.engine._stepped -= 3600  # the last step is long ago
    assert server.engine.status == "ok"
    seen = []
    admit = server.engine._admit
    monkeypatch.setattr(server.engine, "_admit", lambda: (seen.append(server.engine.status), admit()))
    Chat(server).say(LONG)
    assert set(seen) == {"ok"}


def test_ray_is_told_of_a_replica_that_stalls(serve: Serve):
    one = object.__new__(replica.Replica)
    server = serve(limits={"step_timeout": 1})
    one._service = SimpleNamespace(engine=server.engine)
    one.check_health()
    server.engine._calls.append(None)  # as if somebody waited
    server.engine._stepped -= 2
    with pytest.raises(RuntimeError, match="stalled"):
        one.check_health()
    server.engine._calls.clear()
    del one._service


def test_two_keys_share_places(serve: Serve):
    """One key with more requests than there are places; another's, one after the other, are all answered in turn."""
    server = serve(keys=("a", "b"), limits={"parallel": 2, "waiting": 8, "waiting_all": 8})
    stop, refused = threading.Event(), []

    def flood(number: int) -> None:
        while not stop.is_set():
            asked = {"model": "tiny", "messages": [{"role": "user", "content": f"{number}"}], "max_tokens": 30}
            refused.append(server.http("a").post("/v1/chat/completions", json=asked).status_code)

    many = [threading.Thread(target=flood, args=(number,)) for number in range(16)]
    for one in many:
        one.start()
    server.busy()
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 2}
    answers = [server.http("b").post("/v1/chat/completions", json=asked).status_code for _ in range(20)]
    stop.set()
    for one in many:
        one.join(60)
    assert answers == [200] * 20
    assert 429 in refused  # of the key that asks for too much
    assert set(refused) <= {200, 429}
    server.idle()


def test_health_of_all_tells_the_oldest_step(monkeypatch: pytest.MonkeyPatch):
    told = {
        0: {"status": "ok", "running": 1, "step_age_seconds": 0.5},
        1: {"status": "stalled", "step_age_seconds": 20.0},
    }

    async def all_of_them(*_) -> dict:
        return told

    backend = Replicas(None, 3, [])
    monkeypatch.setattr(backend, "_all", all_of_them)
    found = asyncio.run(backend.health())
    assert found == {"status": "ok", "replicas": 3, "live": 2, "running": 1, "step_age_seconds": 20.0}


class Stream:
    """What Serve's handle gives for an answer: its items, or an error in their place."""

    def __init__(self, *items: AnswerStart | str | Exception) -> None:
        self.items = [*items]

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> AnswerStart | str:
        if not self.items:
            raise StopAsyncIteration
        if isinstance(item := self.items.pop(0), Exception):
            raise item
        return item

    def cancel(self) -> None:
        pass


class Handle:
    """Stands for Serve's handle, which gives one of these answers after the other."""

    def __init__(self, *answers: Stream) -> None:
        self.answers, self.sessions = answers, []

    def options(self, *, session_id: str, stream: bool = False) -> Handle:
        self.sessions.append(session_id.partition("/")[2])
        return self

    @property
    def answer(self) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *_: self.answers[len(self.sessions) - 1])

    @property
    def tell(self) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *_: anext(self.answers[len(self.sessions) - 1]))


def answers(handle: Handle) -> list[AnswerStart | str]:
    """To a request of three replicas."""

    async def ask() -> list[AnswerStart | str]:
        request = CompletionRequest(model="tiny", prompt="Hello.")
        return [item async for item in Replicas(handle, 3, []).answer(request, "a", {})]

    return asyncio.run(ask())


def test_a_replica_with_a_full_queue_is_passed_over():
    """The last one's answer is given, whatever it is; a replica that ended is not: its request may be why."""

    def statuses(*starts: AnswerStart | Exception) -> tuple[int, int]:
        handle = Handle(*(Stream(start, "body") for start in starts))
        start, _ = answers(handle)
        return start.status, len(handle.sessions)

    full, whole = AnswerStart(429, headers={replica.HEADER: "0"}), AnswerStart(headers={replica.HEADER: "1"})
    assert statuses(whole) == (200, 1)
    assert statuses(full, whole) == (200, 2)
    assert statuses(full, full, full) == (429, 3)
    with pytest.raises(Refusal, match="an end of the replica's process"):
        statuses(ActorDiedError(), whole)


FAULT = RayTaskError("answer", SECRET, TypeError(SECRET))
GONE = [
    ActorDiedError(),
    ActorUnavailableError(SECRET, None),
    OutOfMemoryError(SECRET),  # what Ray raises for an actor that it ended for its memory: no error of actors
    NodeDiedError(SECRET),
    WorkerCrashedError(),
    DeploymentUnavailableError(SimpleNamespace(name="replica")),
]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        *((error, 503, "replica_lost") for error in GONE),
        *((error, 500, "generation_failed") for error in (FAULT, FAULT.as_instanceof_cause(), RaySystemError(SECRET))),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, Exception) else None,
)
def test_a_fault_of_a_replica_is_not_its_end(caplog, error: Exception, status: int, code: str):
    """An end is worth another try; a fault is the server's, and its log tells it."""
    with pytest.raises(Refusal) as refused:
        answers(Handle(Stream(error)))
    assert (refused.value.status, refused.value.code) == (status, code)
    start = AnswerStart(media_type=EVENTS)
    told, *rest, done = answers(Handle(Stream(start, "data: 1\n\n", error)))[1:]
    assert [told, done] == ["data: 1\n\n", "data: [DONE]\n\n"]
    assert [json.loads(one.removeprefix("data: "))["error"]["code"] for one in rest] == [code]
    assert SECRET not in refused.value.message + rest[0]
    assert len(caplog.records) == 2
    for record in caplog.records:
        assert (record.levelno, record.error) == (logging.WARNING, str(error)) if status == 503 else record.exc_info
    if status == 500:
        assert f"under {caplog.records[0].requests[0]}." in refused.value.message


def test_replicas_that_are_gone_are_left_out_and_faults_are_told(caplog):
    async def conversations(*told: object) -> list:
        return await Replicas(Handle(*(Stream(one) for one in told)), 3, []).conversations("a")

    one, other = ({"id": str(created), "created": created} for created in range(2))
    assert asyncio.run(conversations((1, [other]), OutOfMemoryError(SECRET), (0, [one]))) == [one, other]
    assert not caplog.records
    with pytest.raises(Refusal, match="a fault of the server"):
        asyncio.run(conversations((1, [other]), FAULT, (0, [one])))
    assert [record.exc_info[1] for record in caplog.records] == [FAULT]


def test_what_replicas_log_is_followed_after_a_fault(monkeypatch: pytest.MonkeyPatch, caplog):
    backend, fetched = Replicas(None, 1, []), asyncio.Event()

    async def fetch(*_) -> dict:
        if not caplog.records:
            logging.getLogger("namm.serving").error("a replica failed")
            raise Refusal(500, "", "generation_failed")
        fetched.set()
        return {0: [logging.makeLogRecord({"name": "namm.serving", "msg": "later", "levelno": logging.ERROR})]}

    async def follow() -> None:
        async with backend.running():
            await asyncio.wait_for(fetched.wait(), 10)
            await asyncio.sleep(0)

    monkeypatch.setattr(replicas, "HEARTBEAT", 0.01)
    monkeypatch.setattr(backend, "_all", fetch)
    asyncio.run(follow())
    assert "later" in caplog.messages
