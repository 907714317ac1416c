"""The process of a server ends with the status that its end calls for, and says why."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from namm.serving import fatal
from tests.serving.broken import FAULT, LOST, SLIP, Broken
from tests.serving.made import tokenizer
from tests.serving.replicated import REPLICAS, replicated

ENDLESS = {str(tokenizer().eos_token_id): -100}
ROOT = Path(__file__).parents[2]


class Process:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], url: str, said: Path) -> None:
        self.process, self.url, self._said = process, url, said

    def said(self) -> str:
        return self._said.read_text()

    def logged(self) -> list[dict]:
        return [json.loads(line) for line in self.said().splitlines() if line.startswith("{")]

    def body(self, text: str, **more) -> dict:
        return {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 8, **more}

    def ask(self, text: str) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/chat/completions", json=self.body(text), timeout=60)

    @contextmanager
    def answering(self, tokens: int) -> Iterator[Iterator[str]]:
        """The events of a long answer that has begun."""
        body = self.body("Hello.", stream=True, max_tokens=tokens, logit_bias=ENDLESS)
        with httpx.stream("POST", f"{self.url}/v1/chat/completions", json=body, timeout=60) as answer:
            events = (line[6:] for line in answer.iter_lines() if line)
            for _ in range(5):
                next(events)
            yield events


@contextmanager
def started(way: str, folder: Path, said: Path) -> Iterator[Process]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.serving.broken", way, str(folder), str(port)]
    with said.open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, text=True, env=dict(os.environ))
    server = Process(process, f"http://127.0.0.1:{port}", said)
    try:
        until = time.monotonic() + 120
        while True:
            assert process.poll() is None, server.said()
            assert time.monotonic() < until, server.said()
            try:
                if httpx.get(f"{server.url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield server
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("way", "word"), [("namm", FAULT), ("uvicorn", LOST)])
def test_an_engine_that_cannot_go_on_ends_the_process(folder: Path, tmp_path: Path, way: str, word: str):
    with started(way, folder, tmp_path / "log") as server:
        with server.answering(1900) as events:
            answer = server.ask(word)
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "generation_failed")
            *_, told, done = events
        assert (json.loads(told)["error"]["code"], done) == ("generation_failed", "[DONE]")
        assert server.process.wait(fatal.GRACE + 20) == fatal.STATUS != 0
        assert "the engine cannot go on" in server.said()
        assert {FAULT: "a bug of the loop", LOST: "device-side assert"}[word] in server.said()


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGHUP, 0)])
def test_a_signal_during_an_answer_is_in_the_log(folder: Path, tmp_path: Path, sent: signal.Signals, status: int):
    with started("namm", folder, tmp_path / "log") as server:
        with server.answering(300) as events:
            server.process.send_signal(sent)
            *_, last, done = events
        assert json.loads(last)["choices"][0]["finish_reason"] == "length"
        assert done == "[DONE]"
        assert server.process.wait(60) == status
        told = [(record["message"], record.get("signals")) for record in server.logged()]
        assert told[-2:] == [("stopping", [sent.name]), ("stopped", None)]


def test_a_crash_leaves_the_stacks_of_its_threads(folder: Path, tmp_path: Path):
    with started("namm", folder, tmp_path / "log") as server:
        server.process.send_signal(signal.SIGSEGV)
        assert server.process.wait(60) == -signal.SIGSEGV
        assert "Fatal Python error: Segmentation fault" in server.said()
        assert "_waits_for_work" in server.said()  # where the engine was


@pytest.mark.slow
def test_a_replica_with_a_fault_goes_on_and_one_whose_engine_cannot_is_started_again(folder: Path, caplog):
    settings = Broken(str(folder), ("h2o",), 0.25, 32, threads=1)
    with replicated(settings, "ray") as server:
        server.wait(live=REPLICAS)
        for text in (SLIP, LOST):
            assert server.health()["live"] == REPLICAS
            body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 8}
            answer = server.http().post("/v1/chat/completions", json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "generation_failed")
        (failed,) = [record for record in caplog.records if record.getMessage() == "a replica failed"]
        assert isinstance(failed.exc_info[1], TypeError)
        server.wait(60, live=REPLICAS - 1)
        server.wait(60, live=REPLICAS)
        body["messages"][0]["content"] = "Hello."
        assert server.http().post("/v1/chat/completions", json=body).status_code == 200
