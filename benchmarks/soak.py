"""Many clients for a long time against a server of our own, which must not be wrong, leak, mix up or give up.

    python benchmarks/soak.py                                              # 50 clients, 10 minutes, a tiny random model
    python benchmarks/soak.py --model smollm2-135m-instruct --clients 6    # the real one
    python benchmarks/soak.py --replicas 2 --kill                          # and one replica is killed in the middle

Clients hold conversations of a pool whose answers are known, leave in the middle, send what nobody should, and list
and delete conversations, under five keys. What must hold:

* answers are those that the memory gives without a server (greedy), and follow-up questions that go on are as right as
  those that are read again;
* every request is answered, or refused with a status that fits and a message; no 500;
* a key never sees another's conversations, by list, id or text, and never goes on with one;
* bytes stay within the limit, and when all clients are gone and all conversations deleted nothing is held: bytes 0,
  memory, threads and open files of the process as before;
* the server does not end before it is asked to, and then with a status that says so. It runs with faulthandler on, and what
  it said is kept in runs/soak.log.

Exits with 1 if any of this is violated. Appends a row to benchmarks/results/soak.jsonl.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import rows
import torch
from rich.console import Console
from server import Server, parse
from soak_bad import CHAT, CONVERSATIONS, TEXT, Bad, bad_requests
from soak_pool import CONTEXT, Maker, Script, write_model

from namm.models import load_model

KEYS = 5
RETURNING = (429, 503)  # come again later
FINE_EXITS = (0, -signal.SIGTERM)  # of a server that was asked to end
MOST_TOLD = 5  # violations of a kind that are told in full
ACTIONS = {
    "talk": 10,
    "stranger": 2,
    "leave": 3,
    "complete": 2,
    "bad": 5,
    "listed": 1,
    "foreign": 1,
    "delete": 2,
    "look": 1,
}
console = Console()


@dataclass
class Seen:
    """What happened so far."""

    statuses: Counter[str] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)  # of violations
    answers: int = 0
    continued: int = 0
    strangers: int = 0
    disconnects: int = 0
    lost: int = 0  # requests that a killed replica took with it
    most_bytes: float = 0.0

    def violated(self, what: str) -> None:
        self.violations.append(what)
        kind = what.partition(":")[0]
        self.kinds[kind] += 1
        if self.kinds[kind] <= MOST_TOLD:
            console.print(f"violated: {what}", style="red", highlight=False, markup=False)


class Soak:
    """The clients and what they know together.

    Args:
        scripts: conversations whose answers are known.
        secrets: of each key; part of its own scripts and of nothing else.
    """

    def __init__(
        self, options: argparse.Namespace, server: Server, name: str, scripts: list[Script], secrets: list[str]
    ) -> None:
        self.options, self.server, self.name, self.scripts, self.secrets = options, server, name, scripts, secrets
        self.keys = keys_of(options.seed)
        self.seen = Seen()
        self.ids: list[set[str]] = [set() for _ in self.keys]  # of conversations, as each key was told them
        self.begun: set[tuple[int, str]] = set()  # (key, script) that were said
        self.strange: set[tuple[int, str]] = set()  # that are being said for the first time in the middle
        self.stop = asyncio.Event()
        self.killed: float | None = None
        most = httpx.Limits(max_connections=None, max_keepalive_connections=options.clients)
        self.http = httpx.AsyncClient(base_url=server.url, timeout=httpx.Timeout(120), limits=most)

    # -- requests ------------------------------------------------------------------------------------------------------

    async def request(
        self, what: str, key: int, method: str, path: str, fine: tuple[int, ...], **more: Any
    ) -> httpx.Response | None:
        """A request whose status must be one of these; None if a killed replica took it along."""
        more["headers"] = {"Authorization": f"Bearer {self.keys[key]}"} | more.get("headers", {})
        try:
            answer = await self.http.request(method, path, **more)
        except httpx.HTTPError as error:
            self.failed(what, error)
            return None
        self.check(what, answer, fine)
        return answer

    def check(self, what: str, answer: httpx.Response, fine: tuple[int, ...]) -> None:
        """Count a status; it must fit, and a refusal must say why."""
        status = answer.status_code
        self.seen.statuses[str(status)] += 1
        if status >= 500 and self.killed is not None and time.monotonic() - self.killed < self.options.recovery:
            self.seen.lost += 1
        elif status not in fine:
            self.seen.violated(f"{what}: {status} instead of {fine}: {answer.text[:300]}")
        if status >= 400 and not reason_of(answer):
            self.seen.violated(f"{what}: {status} without a reason: {answer.text[:300]}")
        if status == 429 and not answer.headers.get("retry-after", "").isdigit():
            self.seen.violated(f"{what}: 429 without Retry-After")

    def failed(self, what: str, error: Exception) -> None:
        if self.killed is not None and time.monotonic() - self.killed < self.options.recovery:
            self.seen.lost += 1
        else:
            self.seen.violated(f"{what}: {type(error).__name__}: {error}")

    def body(self, script: Script, turn: int, stream: bool) -> dict[str, Any]:
        asked = {"model": self.name, "messages": script.messages(turn), "temperature": 0, "stream": stream}
        options = {"stream_options": {"include_usage": True}} if stream else {}
        return asked | options | {"max_tokens": self.options.answer}

    async def whole(self, script: Script, turn: int, key: int) -> tuple[str, str, dict[str, Any]] | int:
        """Text, reason of its end and usage; or the status of the refusal, 0 if nothing came."""
        answer = await self.request("answer", key, "POST", CHAT, (200, *RETURNING), json=self.body(script, turn, False))
        if answer is None or answer.status_code != 200:
            return answer.status_code if answer is not None else 0
        told = answer.json()
        choice = told["choices"][0]
        return choice["message"]["content"], choice["finish_reason"], told["usage"]

    async def streamed(self, script: Script, turn: int, key: int) -> tuple[str, str, dict[str, Any]] | int:
        """The same as a stream."""
        text, reason, done = "", "", False
        usage: dict[str, Any] = {}
        headers = {"Authorization": f"Bearer {self.keys[key]}"}
        try:
            async with self.http.stream("POST", CHAT, json=self.body(script, turn, True), headers=headers) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    self.check("stream", answer, RETURNING)
                    return answer.status_code
                async for event in events(answer):
                    done = event == "[DONE]"
                    if done or "error" in (told := json.loads(event)):
                        break
                    usage = told.get("usage") or usage
                    for choice in told["choices"]:
                        text += choice["delta"].get("content") or ""
                        reason = choice.get("finish_reason") or reason
        except httpx.HTTPError as error:
            self.failed("stream", error)
            return 0
        self.seen.statuses["200"] += 1
        if not done or not usage:
            self.failed("stream", RuntimeError(f"ended without an end: {event[:300]}"))
            return 0
        return text, reason, usage

    # -- what clients do -----------------------------------------------------------------------------------------------

    async def client(self, number: int) -> None:
        """One client, until it is told to stop."""
        key, rng = number % KEYS, random.Random(f"{self.options.seed} {number}")
        while not self.stop.is_set():
            (action,) = rng.choices(list(ACTIONS), list(ACTIONS.values()))
            self.seen.actions[action] += 1
            try:
                await getattr(self, action)(key, rng)
            except Exception as error:  # a fault of an answer that nothing above expects
                self.seen.violated(f"{action}: {type(error).__name__}: {error}")
            await asyncio.sleep(rng.expovariate(1 / self.options.pause))

    def scripts_of(self, key: int) -> list[Script]:
        """Its own ones, and those of others that it has said once already."""
        return [
            one for one in self.scripts
            if (one.key == key or (key, one.name) in self.begun) and (key, one.name) not in self.strange
        ]  # fmt: skip

    async def talk(self, key: int, rng: random.Random) -> None:
        """A conversation from its first question on, perhaps not to its end."""
        script = rng.choice(self.scripts_of(key))
        for turn in range(rng.randint(1, len(script.turns))):
            if not await self.ask(script, turn, key, rng):
                return
            await asyncio.sleep(rng.expovariate(1 / self.options.pause))

    async def ask(self, script: Script, turn: int, key: int, rng: random.Random, new: bool = False) -> bool:
        """One question, again while the server is busy; whether it was answered."""
        self.begun.add((key, script.name))
        ask = self.streamed if rng.random() < 0.6 else self.whole
        for _ in range(20):
            answer = await ask(script, turn, key)
            if not isinstance(answer, int):
                self.compare(script, turn, key, answer, new)
                return True
            if answer not in RETURNING or self.stop.is_set():
                return False
            await asyncio.sleep(rng.uniform(0.5, 2))
        return False

    async def complete(self, key: int, rng: random.Random) -> None:
        """The same text as a completion, which has the same answer."""
        script = rng.choice(self.scripts_of(key))
        turn = rng.choice(script.turns)
        asked = {"model": self.name, "prompt": turn.prompt, "max_tokens": self.options.answer, "temperature": 0}
        answer = await self.request("completion", key, "POST", TEXT, (200, *RETURNING), json=asked)
        if answer is not None and answer.status_code == 200:
            self.seen.answers += 1
            choice = answer.json()["choices"][0]
            if (choice["text"], choice["finish_reason"]) != (turn.answer, turn.finish):
                self.seen.violated(f"completion of {script.name}: {choice} instead of {turn.answer!r}")

    def compare(self, script: Script, turn: int, key: int, answer: tuple[str, str, dict[str, Any]], new: bool) -> None:
        """Against the only right answer, and what may be known of the conversation."""
        text, reason, usage = answer
        right, cached = script.turns[turn], usage["prompt_tokens_details"]["cached_tokens"]
        where = f"{script.name}, question {turn}, key {key}, {cached} of {usage['prompt_tokens']} tokens known"
        self.seen.answers += 1
        self.seen.continued += cached > 0
        if (text, reason) != (right.answer, right.finish):
            self.seen.violated(f"{where}: {text!r} ({reason}) instead of {right.answer!r} ({right.finish})")
        if usage["prompt_tokens"] != right.tokens:
            self.seen.violated(f"{where}: a prompt of {right.tokens} tokens")
        if cached and (new or turn == 0):
            self.seen.violated(f"{where}: nothing could be known")
        if usage["namm"]["conversation"]:
            self.told(key, [usage["namm"]["conversation"]])

    def told(self, key: int, idents: list[str]) -> None:
        """Ids of conversations belong to one key only."""
        self.ids[key].update(idents)
        for other in range(KEYS):
            if other != key and (both := self.ids[other].intersection(idents)):
                self.seen.violated(f"keys {key} and {other} both see {both}")

    async def stranger(self, key: int, rng: random.Random) -> None:
        """What another key has said, from the middle on, for the first time under this key: nothing of it is known."""
        spoken = {name for _, name in self.begun}
        new = [one for one in self.scripts if one.shared and one.name in spoken and (key, one.name) not in self.begun]
        if not new:
            return
        script = rng.choice(new)
        self.strange.add((key, script.name))
        if await self.ask(script, rng.randint(1, len(script.turns) - 1), key, rng, new=True):
            self.seen.strangers += 1
        self.strange.discard((key, script.name))

    async def leave(self, key: int, rng: random.Random) -> None:
        """A client that is gone before its answer is complete, at any time."""
        script = rng.choice(self.scripts_of(key))
        turn = rng.randrange(len(script.turns))
        headers = {"Authorization": f"Bearer {self.keys[key]}"}
        ask = self.http.stream("POST", CHAT, json=self.body(script, turn, rng.random() < 0.7), headers=headers)
        pieces = rng.randint(0, 6)
        self.seen.disconnects += 1
        try:
            async with asyncio.timeout(rng.expovariate(1.0)), ask as answer:
                async for _ in answer.aiter_raw():
                    pieces -= 1
                    if pieces < 0:
                        return
        except TimeoutError:
            return
        except httpx.HTTPError as error:
            self.failed("leave", error)

    async def bad(self, key: int, rng: random.Random) -> None:
        """What nobody should send; now and then half of it."""
        if rng.random() < 0.1:
            await self.half(key)
            return
        o = self.options
        one: Bad = rng.choice(bad_requests(self.name, o.context, o.answer, o.body, rng))
        more: dict[str, Any] = {"json": one.json} if one.json is not None else {"content": one.content}
        if one.pieces is not None:
            more = {"content": one.pieces()}
        headers = dict(one.headers) | (
            {} if one.json is not None or one.headers else {"Content-Type": "application/json"}
        )
        if one.key == "own":
            headers["Authorization"] = f"Bearer {self.keys[key]}"
        elif one.key is not None:
            headers["Authorization"] = f"Bearer {one.key}"
        try:
            answer = await self.http.request(one.method, one.path, headers=headers, **more)
        except httpx.WriteError:  # refused before all of it was sent
            return
        except httpx.HTTPError as error:
            self.failed(one.name, error)
            return
        self.check(one.name, answer, one.statuses)

    async def half(self, key: int) -> None:
        """A body that ends before it should."""
        _, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.keys[key]}\r\nContent-Length: 1000\r\n\r\n"
        )
        writer.write(head.encode() + b'{"model": ')
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.close()
        self.seen.disconnects += 1

    async def conversations(self, key: int) -> list[str]:
        answer = await self.request("list", key, "GET", CONVERSATIONS, (200,))
        return [one["id"] for one in answer.json()["data"]] if answer is not None and answer.status_code == 200 else []

    async def listed(self, key: int, rng: random.Random) -> None:
        self.told(key, await self.conversations(key))

    async def foreign(self, key: int, rng: random.Random) -> None:
        """Another key's conversation is not there, whatever is done to it."""
        others = [ident for other in range(KEYS) if other != key for ident in sorted(self.ids[other])]
        if others:
            path = f"{CONVERSATIONS}/{rng.choice(others)}"
            await self.request("foreign", key, "DELETE", path, (404,))

    async def delete(self, key: int, rng: random.Random) -> None:
        mine = await self.conversations(key)
        if mine:
            await self.request("delete", key, "DELETE", f"{CONVERSATIONS}/{rng.choice(mine)}", (204, 404))

    async def look(self, key: int, rng: random.Random) -> None:
        """What watches a server."""
        path = rng.choice(["/health", "/v1/models", f"/v1/models/{self.name}", "/", "/openapi.json"])
        await self.request("look", key, "GET", path, (200,))

    # -- the whole -----------------------------------------------------------------------------------------------------

    async def run(self, minutes: float) -> None:
        """All clients for so long, and somebody who watches the bytes."""
        self.stop.clear()
        clients = [asyncio.create_task(self.client(number)) for number in range(self.options.clients)]
        watching = asyncio.create_task(self.watch())
        await self.wait(30 * minutes)
        if self.options.kill and minutes == self.options.minutes:
            self.kill()
        await self.wait(30 * minutes)
        self.stop.set()
        _, stuck = await asyncio.wait(clients, timeout=180)
        for task in stuck:
            task.cancel()
            self.seen.violated("a client waited for three minutes after all others had stopped")
        watching.cancel()
        await asyncio.wait([watching])
        if not watching.cancelled():
            self.seen.violated(f"nobody watched the bytes: {watching.exception()}")

    async def wait(self, seconds: float) -> None:
        """As long as the server runs."""
        end = time.monotonic() + seconds
        while self.server.runs and time.monotonic() < end:
            await asyncio.sleep(0.5)

    async def watch(self) -> None:
        while True:
            try:
                seen = parse((await self.http.get("/metrics")).text)
            except httpx.HTTPError as error:
                self.failed("metrics", error)
                await asyncio.sleep(5)
                continue
            if failures := seen['namm_conversations_moved{how="failed"}']:
                self.seen.violated(f"files that failed: {failures:.0f}")
            self.seen.most_bytes = max(self.seen.most_bytes, held(seen))
            if held(seen) > (most := self.options.limit * self.options.replicas):
                self.seen.violated(f"{held(seen):,.0f} bytes of at most {most:,}")
            await asyncio.sleep(0.5)

    def kill(self) -> None:
        """Kill a replica without a warning."""
        found = self.replicas()
        if not found:
            self.seen.violated("there is no replica to kill")
            return
        console.print(f"killed {found[0]}, one of {len(found)} replicas")
        self.killed = time.monotonic()
        os.kill(found[0], signal.SIGKILL)

    def replicas(self) -> list[int]:
        """Processes of replicas, if there are several."""
        return [pid for pid in descendants(self.server.pid) if b"ServeReplica" in command_of(pid)]

    async def empty(self) -> dict[str, float]:
        """Delete all conversations once nothing runs; the numbers of the process afterwards."""
        for _ in range(120):
            seen = self.server.metrics()
            if not seen["namm_requests_running"] and not seen["namm_requests_waiting"]:
                break
            await asyncio.sleep(0.5)
        for key in range(KEYS):
            for ident in await self.conversations(key):
                await self.request("delete", key, "DELETE", f"{CONVERSATIONS}/{ident}", (204,))
        await self.http.aclose()
        self.http = httpx.AsyncClient(base_url=self.server.url, timeout=120)
        await asyncio.sleep(2)
        seen = self.server.metrics()
        names = ("namm_conversations", "namm_requests_running", "namm_requests_waiting", "namm_bytes_reserved")
        for what, count in [("bytes", held(seen)), *((name, seen[name]) for name in names)]:
            if count:
                self.seen.violated(f"{count:,.0f} {what} although nothing runs and all is deleted")
        return {
            "rss": sum(map(memory_of, [self.server.pid, *self.replicas()])),
            "threads": self.server.status("Threads"),
            "files": self.server.open_files(),
        }


def reason_of(answer: httpx.Response) -> str:
    """The message of a refusal."""
    try:
        told = answer.json()["error"]
        return str(told["message"]) if told["type"] and "code" in told else ""
    except (ValueError, KeyError, TypeError):
        return ""


async def events(answer: httpx.Response) -> Any:
    """The data of a stream of events."""
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


def held(metrics: dict[str, float]) -> float:
    return sum(metrics[f'namm_bytes_held{{where="{where}"}}'] for where in ("running", "resting"))


def keys_of(seed: int) -> list[str]:
    return [f"key-{seed}-{number}" for number in range(KEYS)]


# -- processes ---------------------------------------------------------------------------------------------------------


def descendants(pid: int) -> list[int]:
    """Processes that this one started, and those that they started."""
    parents = {int(path.name): parent_of(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit()}

    def below(one: int) -> Iterator[int]:
        for child, parent in parents.items():
            if parent == one:
                yield child
                yield from below(child)

    return sorted(below(pid))


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def memory_of(pid: int) -> int:
    """Resident bytes."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


# -- the run -----------------------------------------------------------------------------------------------------------


def prepare(options: argparse.Namespace, folder: Path) -> tuple[str, list[Script], list[str]]:
    """The model, and conversations with it whose answers are known."""
    source = options.model or str(write_model(folder / "tiny"))
    model, tokenizer = load_model(source)
    maker = Maker(model, tokenizer, options.memory, options.budget, options.interval, options.answer, options.margin)
    secrets = [f"Secret{random.Random(f'{options.seed} {key}').getrandbits(60)}" for key in range(KEYS)]
    lengths, scripts = (100, options.letters), []
    for key in range(KEYS):
        for shared in (False, True):
            scripts += maker.scripts(key, secrets[key], options.scripts, lengths, shared, options.seed)
    console.print(f"{len(scripts)} conversations with known answers")
    return source, scripts, secrets


def server_of(options: argparse.Namespace, source: str, folder: Path, log: Path) -> Server:
    fixed = {
        "--memory": options.memory, "--budget": options.budget, "--update-interval": options.interval,
        "--memory-limit": options.limit, "--max-body": options.body, "--context": options.context,
        "--max-tokens": options.answer, "--queue": options.queue,
        "--queue-all": options.queue_all, "--threads": options.threads, "--log-level": "warning",
    }  # fmt: skip
    if options.spill:
        fixed |= {"--spill": folder / "spill", "--spill-limit": options.limit}
    if options.replicas > 1:
        fixed["--replicas"] = options.replicas
    log.parent.mkdir(exist_ok=True)
    return Server([source, *(str(part) for pair in fixed.items() for part in pair)], log, keys_of(options.seed))


async def soak(
    options: argparse.Namespace, server: Server, source: str, scripts: list[Script], secrets: list[str]
) -> dict[str, Any]:
    """Warm up, soak, and compare what is left with what was there before."""
    run = Soak(options, server, Path(source).name, scripts, secrets)
    before, after = {}, {}
    try:
        await run.run(options.warm)
        before = await run.empty()
        await run.run(options.minutes)
        after = await run.empty()
    except httpx.TransportError as error:
        run.seen.violated(f"no answer: {type(error).__name__}: {error}; {server.how_it_is()}")
    await run.http.aclose()
    grown = {name: after[name] - before[name] for name in after}
    for name, most in (("rss", options.leak), ("threads", 5), ("files", 5)):
        if grown.get(name, 0) > most and run.killed is None:
            run.seen.violated(f"{name} grown: {after[name]:,.0f} after {before[name]:,.0f}")
    seen = run.seen
    return {
        "model": "tiny" if options.model is None else Path(source).name, "memory": options.memory, "replicas": options.replicas,
        "killed": run.killed is not None, "requests": sum(seen.statuses.values()), "answers": seen.answers,
        "continued": seen.continued, "strangers": seen.strangers, "disconnects": seen.disconnects, "lost": seen.lost,
        "statuses": dict(sorted(seen.statuses.items())), "actions": dict(seen.actions), "limit_bytes": options.limit,
        "most_bytes_held": round(seen.most_bytes), "rss_before": before.get("rss"), "rss_after": after.get("rss"),
        "files": [before.get("files"), after.get("files")], "threads": [before.get("threads"), after.get("threads")],
        "violations": seen.violations[:100], "n": seen.answers,
    }  # fmt: skip


def errors_in(log: Path) -> list[str]:
    """What a server's log says went wrong in it, rather than with a request."""
    marks = ('"level": "error"', '"level": "critical"', "Traceback", "Fatal Python error")
    lines = log.read_text(errors="replace").splitlines()
    return [line[:2000] for line in lines if any(mark in line for mark in marks)]


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a tiny random one if left out")
    parser.add_argument("--memory", default="h2o")
    parser.add_argument("--budget", type=float, default=0.25)
    parser.add_argument("--interval", type=int, default=128, help="tokens between two updates")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--warm", type=float, default=1, help="minutes before memory is measured first")
    parser.add_argument("--pause", type=float, default=0.2, help="seconds that a client rests, as a mean")
    parser.add_argument(
        "--scripts", type=int, default=8, help="conversations of each key that only it has, and that others have too"
    )
    parser.add_argument("--letters", type=int, default=1500, help="most letters of a conversation's first message")
    parser.add_argument("--answer", type=int, default=16, help="tokens of an answer at most")
    parser.add_argument("--margin", type=float, default=0.002, help="least distance of two logits in a known answer")
    parser.add_argument("--limit", type=int, default=6_000_000, help="bytes of all conversations")
    parser.add_argument("--leak", type=int, default=50_000_000, help="bytes that the process may have grown by")
    parser.add_argument("--body", type=int, default=65_536)
    parser.add_argument("--context", type=int, default=CONTEXT)
    parser.add_argument("--queue", type=int, default=6, help="requests of a key that may wait")
    parser.add_argument("--queue-all", type=int, default=24, help="requests of all keys that may wait")
    parser.add_argument("--spill", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--kill", action="store_true", help="kill a replica in the middle")
    parser.add_argument("--recovery", type=float, default=60, help="seconds after that in which requests may be lost")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = read_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # and the server with it
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        source, scripts, secrets = prepare(options, Path(scratch))
        log = Path("runs/soak.log").absolute()
        with server_of(options, source, Path(scratch), log) as server:
            row = asyncio.run(soak(options, server, source, scripts, secrets))
            ended = None if server.runs else server.how_it_is()
        row["exit"] = server.exit
        if ended is not None or server.exit not in FINE_EXITS:
            row["violations"].append(f"the end: {ended or server.how_it_is()}; see {log}")
        row["violations"] += [] if row["killed"] else errors_in(log)
        row["violations"] += [f"{path.name} is left on disk" for path in Path(scratch).glob("spill/**/*.safetensors")]
    console.print_json(json.dumps(row))
    rows.add("soak", [{"settings": vars(options)} | row])
    sys.exit(1 if row["violations"] else 0)


if __name__ == "__main__":
    main()
