"""A body as large as is allowed keeps nobody else waiting, whatever it holds, and takes little memory."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from tests.serving.made import tokenizer

SIZE = (4 << 20) - 500  # bytes, what a server takes unless told otherwise
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SAID = [{"role": "user", "content": "Hello."}]
ENDLESS = {str(tokenizer().eos_token_id): -100}  # a bias against the end of an answer


class Server:
    """A server in a process of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        command = [sys.executable, "-m", "namm.cli", "serve", str(folder), "--name", "tiny", "--memory", "h2o"]
        self.process = subprocess.Popen(
            [*command, "--update-interval", "32", "--port", str(port), "--log-level", "error"],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120)

    def wait(self) -> None:
        for _ in range(600):
            try:
                self.http.get("/health")
                return
            except httpx.ConnectError:
                assert self.process.poll() is None
                time.sleep(0.1)
        raise AssertionError("the server did not start")

    def held(self, which: str) -> int:
        """Bytes of it in memory: now, VmRSS, or at most since `forget`, VmHWM."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{which}:\s+(\d+) kB", status)
        assert found
        return int(found[1]) << 10

    def forget(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def worked(self) -> float:
        """Seconds of CPU time that it has used. What else the machine does is not in it."""
        user, system = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def longest_gap(self, during: Callable[[], None]) -> float:
        """Seconds that it works between two chunks of another client's stream at most, while something is done."""
        times, streaming, done = [], threading.Event(), threading.Event()
        body = {"model": "tiny", "messages": SAID, "max_tokens": 1500, "stream": True, "logit_bias": ENDLESS}

        def listen() -> None:
            while not done.is_set():  # an answer may be shorter than what is done meanwhile
                with self.http.stream("POST", CHAT, json=body) as answer:
                    for line in answer.iter_lines():
                        if line:
                            times.append(self.worked())
                            streaming.set()
                        if done.is_set():
                            break

        listener = threading.Thread(target=listen)
        listener.start()
        assert streaming.wait(30)
        began = self.worked()
        during()
        ended = self.worked()
        time.sleep(0.1)
        done.set()
        listener.join()
        seen = [began, *(one for one in times if began <= one <= ended), ended]
        return max(later - earlier for earlier, later in pairwise(seen))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = Server(folder, port)
    try:
        made.wait()
        made.http.post(CHAT, json={"model": "tiny", "messages": SAID, "max_tokens": 100})
        yield made
    finally:
        made.process.terminate()
        made.process.wait(30)
        made.http.close()


def filled(before: str, item: str, after: str, between: str = ",") -> str:
    """As many items as there is room for."""
    count = (SIZE - len(before) - len(after)) // (len(item) + len(between))
    return before + between.join([item] * count) + after


def fields(before: str, value: str, after: str) -> str:
    """As many fields, each of another name."""
    return before + ",".join(f'"{n}": {value}' for n in range((SIZE - 100) // (11 + len(value)))) + after


ASKED = '{"model": "tiny", "max_tokens": 1, '
WITH = ASKED + '"messages": [{"role": "user", "content": "x"}], '
SAYING = ASKED + '"messages": '
USER = SAYING + '[{"role": "user", "content": '
CALLING = SAYING + '[{"role": "assistant", "tool_calls": ['
ARGUMENTS = CALLING + '{"function": {"name": "f", "arguments": "'
COMPLETE = ASKED + '"prompt": '
FORM = WITH + '"response_format": {"type": "json_schema", "json_schema": {"schema": '

BODIES = {
    "zeros": (CHAT, filled("[", "0", "]")),
    "zeros for messages": (CHAT, filled(SAYING + "[", "0", "]}")),
    "zeros for a prompt": (TEXT, filled(COMPLETE + "[", "0", "]}")),
    "zeros for prompts": (TEXT, filled(COMPLETE + "[", "[0]", "]}")),
    "empty lists": (CHAT, filled(SAYING + "[", "[]", "]}")),
    "nested lists": (CHAT, "[" * (SIZE // 2) + "]" * (SIZE // 2)),
    "nested objects": (CHAT, '{"a":' * (SIZE // 6) + "0" + "}" * (SIZE // 6)),
    "lists nested less": (CHAT, filled(WITH + '"tools": [', "[" * 150 + "]" * 150, "]}")),
    "fields": (CHAT, fields(WITH, "0", "}")),
    "fields of a message": (CHAT, fields(SAYING + "[{", "0", "}]}")),
    "a long message": (CHAT, filled(USER + '"', "Hello, my friend. ", '"}]}', "")),
    "one long word": (CHAT, filled(USER + '"', "a", '"}]}', "")),
    "a long prompt": (TEXT, filled(COMPLETE + '"', "0", '"}', "")),
    "long prompts": (TEXT, filled(COMPLETE + "[", f'"{"ab " * 10000}"', "]}")),
    "a long model": (CHAT, filled('{"messages": [{"role": "user", "content": "x"}], "model": "', "a", '"}', "")),
    "messages": (CHAT, filled(SAYING + "[", '{"role":"user","content":""}', "]}")),
    "fewer messages": (CHAT, filled(SAYING + "[", '{"role": "user", "content": "' + "a" * 1000 + '"}', "]}")),
    "parts": (CHAT, filled(USER + "[", '{"type":"text","text":""}', "]}]}")),
    "calls": (CHAT, filled(CALLING, '{"function":{"name":"f","arguments":"{}"}}', "]}]}")),
    "arguments": (CHAT, filled(ARGUMENTS + "[", "0", ']"}}]}]}')),
    "nested arguments": (CHAT, filled(ARGUMENTS, "[", '"}}]}]}', "")),
    "tools": (CHAT, filled(WITH + '"tools": [', '{"type":"function","function":{"name":"f"}}', "]}")),
    "a large tool": (CHAT, filled(WITH + '"tools": [{"x": [', "0", "]}]}")),
    "options": (CHAT, filled(WITH + '"chat_template_kwargs": {"x": [', "{}", "]}}")),
    "a long option": (CHAT, filled(WITH + '"chat_template_kwargs": {"x": [', "0", "]}}")),
    "stops": (CHAT, filled(WITH + '"stop": [', '"a"', "]}")),
    "a long stop": (CHAT, filled(WITH + '"stop": "', "a", '"}', "")),
    "biases": (CHAT, fields(WITH + '"logit_bias": {', "1", "}}")),
    "biases that are none": (CHAT, fields(WITH + '"logit_bias": {', '""', "}}")),
    "notes": (CHAT, fields(WITH + '"metadata": {', "1", "}}")),
    "properties": (CHAT, fields(FORM + '{"properties": {', "true", "}}}}}")),
    "values": (CHAT, fields(FORM + '{"enum": [{', "1", "}]}}}}")),
    "more values": (CHAT, filled(FORM + '{"enum": [', '"a"', "]}}}}")),
    "a long pattern": (CHAT, filled(FORM + '{"type": "string", "pattern": "', "(a|b)*", '"}}}}', "")),
    "digits": (CHAT, filled(WITH + '"seed": ', "1", "}", "")),
    "surrogates": (CHAT, filled(USER + '"', "\\ud800", '"}]}', "")),
}
STATUSES = {"arguments": 200, "a long option": 200, "a long model": 404}  # a template need not show all of it


@pytest.mark.parametrize("what", BODIES)
def test_a_large_body_stops_nobody(server: Server, what: str) -> None:
    path, body = BODIES[what]
    assert SIZE // 2 < len(body) < 4 << 20
    idle = server.held("VmRSS")
    server.forget()
    answers: list[httpx.Response] = []

    def send() -> None:
        answers.append(server.http.post(path, content=body, headers={"Content-Type": "application/json"}))

    gap = server.longest_gap(send)
    print(f"{what}: {gap:.2f} s of work between chunks, {server.held('VmHWM') / idle:.2f} of the idle server's bytes")
    assert answers[0].status_code == STATUSES.get(what, 400), answers[0].text
    assert gap < 1
    assert server.held("VmHWM") < 2 * idle
