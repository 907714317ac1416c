"""A body as large as is allowed, whatever it holds, keeps nobody else waiting and takes no more memory than the server."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
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

    def longest_gap(self, during: Callable[[], None]) -> float:
        """Seconds between two chunks of another client's stream at most, while something is done."""
        times, streaming, done = [], threading.Event(), threading.Event()
        body = {"model": "tiny", "messages": SAID, "max_tokens": 1500, "stream": True, "logit_bias": ENDLESS}

        def listen() -> None:
            while not done.is_set():  # an answer may be shorter than what is done meanwhile
                with self.http.stream("POST", CHAT, json=body) as answer:
                    for line in answer.iter_lines():
                        if line:
                            times.append(time.monotonic())
                            streaming.set()
                        if done.is_set():
                            break

        listener = threading.Thread(target=listen)
        listener.start()
        assert streaming.wait(30)
        began = time.monotonic()
        during()
        ended = time.monotonic()
        time.sleep(0.1)
        done.set()
        listener.join()
        seen = [began, *(one for one in times if began <= one <= ended), ended]
        return max(later - earlier for earlier, later in zip(seen, seen[1:], strict=False))


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


CHAT_WITH = '{"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}], '
SAYING = '{"model": "tiny", "max_tokens": 1, "messages": '
COMPLETE = '{"model": "tiny", "max_tokens": 1, "prompt": '
BODIES = {
    "zeros": (CHAT, filled("[", "0", "]")),
    "zeros for messages": (CHAT, filled(SAYING + "[", "0", "]}")),
    "zeros for a prompt": (TEXT, filled(COMPLETE + "[", "0", "]}")),
    "zeros for prompts": (TEXT, filled(COMPLETE + "[", "[0]", "]}")),
    "empty lists": (CHAT, filled(SAYING + "[", "[]", "]}")),
    "nested lists": (CHAT, "[" * (SIZE // 2) + "]" * (SIZE // 2)),
    "nested objects": (CHAT, '{"a":' * (SIZE // 6) + "0" + "}" * (SIZE // 6)),
    "nested less": (CHAT, filled(CHAT_WITH + '"tools": [', "[" * 150 + "]" * 150, "]}")),
    "fields": (CHAT, CHAT_WITH + ",".join(f'"x{n}": 0' for n in range(SIZE // 13)) + "}"),
    "fields of a message": (CHAT, SAYING + "[{" + ",".join(f'"x{n}": 0' for n in range(SIZE // 13)) + "}]}"),
    "a long message": (CHAT, filled(SAYING + '[{"role": "user", "content": "', "Hello, my friend. ", '"}]}', "")),
    "one long word": (CHAT, filled(SAYING + '[{"role": "user", "content": "', "a", '"}]}', "")),
    "a long prompt": (TEXT, filled(COMPLETE + '"', "0", '"}', "")),
    "long prompts": (TEXT, filled(COMPLETE + "[", f'"{"ab " * 10000}"', "]}")),
    "a long model": (CHAT, filled('{"messages": [{"role": "user", "content": "x"}], "model": "', "a", '"}', "")),
    "messages": (CHAT, filled(SAYING + "[", '{"role":"user","content":""}', "]}")),
    "messages that are fewer": (CHAT, filled(SAYING + "[", '{"role": "user", "content": "' + "a" * 1000 + '"}', "]}")),
    "parts": (CHAT, filled(SAYING + '[{"role": "user", "content": [', '{"type":"text","text":""}', "]}]}")),
    "calls": (CHAT, filled(SAYING + '[{"role": "assistant", "tool_calls": [',
                           '{"function":{"name":"f","arguments":"{}"}}', "]}]}")),
    "arguments": (CHAT, filled(SAYING + '[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[',
                               "0", ']"}}]}]}')),
    "deep arguments": (CHAT, filled(SAYING + '[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "',
                                    "[", '"}}]}]}', "")),
    "tools": (CHAT, filled(CHAT_WITH + '"tools": [', '{"type":"function","function":{"name":"f"}}', "]}")),
    "a large tool": (CHAT, filled(CHAT_WITH + '"tools": [{"x": [', "0", "]}]}")),
    "options": (CHAT, filled(CHAT_WITH + '"chat_template_kwargs": {"x": [', "{}", "]}}")),
    "stops": (CHAT, filled(CHAT_WITH + '"stop": [', '"a"', "]}")),
    "a long stop": (CHAT, filled(CHAT_WITH + '"stop": "', "a", '"}', "")),
    "biases": (CHAT, CHAT_WITH + '"logit_bias": {' + ",".join(f'"{n}": 1' for n in range(SIZE // 12)) + "}}"),
    "biases that are none": (CHAT, CHAT_WITH + '"logit_bias": {' + ",".join(f'"{n}": ""' for n in range(SIZE // 13)) + "}}"),
    "notes": (CHAT, CHAT_WITH + '"metadata": {' + ",".join(f'"{n}": 1' for n in range(SIZE // 12)) + "}}"),
    "digits": (CHAT, filled(CHAT_WITH + '"seed": ', "1", "}", "")),
    "surrogates": (CHAT, filled(SAYING + '[{"role": "user", "content": "', "\\ud800", '"}]}', "")),
}  # fmt: skip
SERVED = ("arguments", "options")  # which the tiny model's template does not show


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
    print(
        f"{what}: {gap:.2f} s, {server.held('VmHWM') / idle:.2f} x, {answers[0].elapsed.total_seconds():.2f} s",
        answers[0].text[:200],
    )
    assert answers[0].status_code == (200 if what in SERVED else 404 if what == "a long model" else 400), answers[
        0
    ].text
    assert gap < 1
    assert server.held("VmHWM") < 2 * idle
