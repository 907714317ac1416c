"""A server under load, by OpenAI's client: the full cache against memories at the same limit of bytes.

    python benchmarks/serving.py

* `load`: long conversations, each with a text of its own, read and then asked again in rounds that visit all of them in
  a random order. What a server still holds goes on; what it had to forget is read again.
* `sooner`: one conversation of 6,000 tokens: a follow-up question that goes on, against the very same request by
  another key, for whom all of it is read; in turns.
* `fair`: a short question while a text of 6,000 tokens is being read, against one that has the server for itself.
* `batch`: answers that are written side by side, tokens a second of all together.

Stopped, the same command goes on: parts that the row file has of this commit with these options are not measured again.
`python benchmarks/serving_tables.py` writes the tables.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import rows
import torch
from openai import APIStatusError, AsyncOpenAI
from rich.console import Console
from server import Server
from transformers import PreTrainedTokenizerBase

from namm.evaluation import commit
from namm.models import load_model
from namm.serving.host import Host
from namm.tasks import passage

LOGS = Path("runs/serving")
QUESTIONS = (
    "Who speaks first in this text?", "What is the mood of the passage?", "Name one place that is mentioned.",
    "What does the passage say about money?", "Who seems unhappy, and why?", "How does the text end?",
)  # fmt: skip
MEMORIES: dict[str, tuple[str, list[str]]] = {  # as shown, and how to serve it
    "full": ("full", []),
    "h2o": ("h2o", []),
    "universal": ("builtin:universal", []),
    "universal, update each 128": ("builtin:universal", ["--update-interval", "128"]),
}
Message = Any  # of the kinds that the client knows: a dictionary of role and content
console = Console()


@dataclass
class Answered:
    """What a client saw of one request."""

    status: int
    first: float = 0.0  # seconds to the first token
    seconds: float = 0.0
    began: float = 0.0
    text: str = ""
    prompt: int = 0
    cached: int = 0
    written: int = 0


@dataclass
class Talk:
    """A conversation as its client knows it."""

    messages: list[Message]
    answers: list[Answered] = field(default_factory=list)

    async def ask(self, client: AsyncOpenAI, model: str, question: str, most: int) -> Answered:
        """The next question; what is refused is not kept."""
        asked = [*self.messages, {"role": "user", "content": question}]
        answer = await stream(client, model, asked, most)
        if answer.status == 200:
            self.messages = [*asked, {"role": "assistant", "content": answer.text}]
        self.answers.append(answer)
        return answer


async def stream(client: AsyncOpenAI, model: str, messages: list[Message], most: int, **more: Any) -> Answered:
    """One streamed answer, greedy."""
    began = time.perf_counter()
    answer = Answered(200, began=began)
    try:
        chunks = await client.chat.completions.create(
            model=model, messages=messages, max_tokens=most, temperature=0, stream=True,
            stream_options={"include_usage": True}, **more,
        )  # fmt: skip
        async for chunk in chunks:
            choice = chunk.choices[0] if chunk.choices else None
            if choice and (choice.delta.content or choice.finish_reason) and not answer.first:
                answer.first = time.perf_counter() - began
            answer.text += (choice.delta.content or "") if choice else ""
            if chunk.usage:
                answer.prompt, answer.written = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
                answer.cached = chunk.usage.prompt_tokens_details.cached_tokens
    except APIStatusError as error:
        answer.status = error.status_code
    answer.seconds = time.perf_counter() - began
    return answer


def client_of(server: Server, key: str = "none") -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=1800)


async def side_by_side(tasks: list[Callable[[], Awaitable[Any]]], at_once: int) -> list[Any]:
    """The results of `tasks`, started in this order, so many open at a time."""
    gate = asyncio.Semaphore(at_once)

    async def one(task: Callable[[], Awaitable[Any]]) -> Any:
        async with gate:
            return await task()

    return await asyncio.gather(*(one(task) for task in tasks))


async def conversations(server: Server, key: str = "none") -> list[dict[str, Any]]:
    async with httpx.AsyncClient(timeout=600) as client:
        found = await client.get(f"{server.url}/v1/conversations", headers={"Authorization": f"Bearer {key}"})
    listed: list[dict[str, Any]] = found.raise_for_status().json()["data"]
    return listed


class Watch:
    """The most bytes that running and resting memories held together, seen four times a second."""

    def __init__(self, server: Server) -> None:
        self._server, self.most = server, 0.0

    async def __aenter__(self) -> Watch:
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _look(self) -> None:
        while True:
            seen = await asyncio.to_thread(self._server.metrics)
            held = sum(seen[f'namm_bytes_held{{where="{where}"}}'] for where in ("running", "resting"))
            self.most = max(self.most, held)
            await asyncio.sleep(0.25)


def middle(values: list[float]) -> float | None:
    return round(statistics.median(values), 3) if values else None


def ninety(values: list[float]) -> float | None:
    """The 90th percentile: the smallest value that nine of ten do not exceed."""
    return round(sorted(values)[-(-9 * len(values) // 10) - 1], 3) if values else None


def text_of(tokens: int, tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> str:
    return "".join(passage("train", tokens, tokenizer, rng))


# -- parts -------------------------------------------------------------------------------------------------------------


class Bench:
    """What the parts share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        model, self.tokenizer = load_model(options.model)
        self.name = Path(options.model).name
        self.full_bytes = Host(self.name, model, self.tokenizer, ["full"], None).served[self.name].bytes_for

    def server(self, memory: str, limit: int, *more: str, keys: list[str] | None = None) -> Server:
        name, interval = MEMORIES[memory]
        LOGS.mkdir(parents=True, exist_ok=True)
        fixed = ["--memory", name, "--budget", str(self.options.budget), "--memory-limit", str(limit)]
        threads = ["--threads", str(self.options.threads)]
        log = LOGS / f"{memory.replace(', ', '-').replace(' ', '-')}.log"
        return Server([self.options.model, *fixed, *interval, *threads, *more], log, keys)

    def talks(self) -> list[Talk]:
        """Conversations about a text each; the same ones for every memory."""
        rng = random.Random(self.options.seed)
        lengths = [round(self.options.tokens * rng.uniform(0.8, 1.2)) for _ in range(self.options.conversations)]
        return [Talk([{"role": "system", "content": text_of(n, self.tokenizer, rng)}]) for n in lengths]

    async def load(self, memory: str) -> dict[str, Any]:
        """Read all conversations, then ask each again, a few requests open at any time."""
        options, talks = self.options, self.talks()
        order = random.Random(options.seed)
        limit = round(options.hold * self.full_bytes(round(1.05 * options.tokens)))
        read: list[Answered] = []
        asked: list[Answered] = []
        with self.server(memory, limit) as server:
            async with client_of(server) as client, Watch(server) as watch:
                began = time.perf_counter()
                for number in range(1 + options.rounds):
                    visited = order.sample(talks, len(talks))
                    round_ = [self._next(client, talk, number) for talk in visited]
                    answers = await side_by_side(round_, options.at_once)
                    (asked if number else read).extend(answers)
                    if number == 0:
                        reading, held = time.perf_counter() - began, await conversations(server)
                asking, after = time.perf_counter() - began - reading, await conversations(server)
            moved = server.metrics()
            peak = server.status("VmHWM")
        return self._counted(read, asked, held, after) | {
            "memory": memory, "limit_bytes": limit, "most_bytes_held": round(watch.most), "peak_rss": peak,
            "reading_seconds": round(reading, 1), "asking_seconds": round(asking, 1),
            "requests_per_second": round(len(asked) / asking, 4),
            "tokens_read": round(moved["namm_tokens_read_total"]),
        }  # fmt: skip

    def _next(self, client: AsyncOpenAI, talk: Talk, number: int) -> Callable[[], Awaitable[Answered]]:
        return lambda: talk.ask(client, self.name, QUESTIONS[number % len(QUESTIONS)], self.options.answer)

    @staticmethod
    def _counted(
        read: list[Answered], asked: list[Answered], held: list[dict[str, Any]], after: list[dict[str, Any]]
    ) -> dict[str, Any]:
        fine = [one for one in asked if one.status == 200]
        first = [one.first for one in fine]
        return {
            "n": len(asked), "conversations_held": len(held), "conversations_held_at_the_end": len(after),
            "bytes_held": sum(one["bytes_held"] for one in after), "bytes_full": sum(one["bytes_full"] for one in after),
            "prompt_tokens": [one.prompt for one in read],
            "continued": sum(one.cached > 0 for one in fine),
            "statuses": {str(s): sum(one.status == s for one in read + asked) for s in {one.status for one in read + asked}},
            "read_first_token": middle([one.first for one in read if one.status == 200]),
            "read_first_token_p90": ninety([one.first for one in read if one.status == 200]),
            "asked_first_token": middle(first), "asked_first_token_p90": ninety(first),
            "asked_first_tokens": [round(one.first, 3) for one in fine],
        }  # fmt: skip

    async def sooner(self, memory: str) -> dict[str, Any]:
        """The same request twice in each turn: by a key whose conversation goes on, and by one that comes anew."""
        options = self.options
        text = text_of(options.long, self.tokenizer, random.Random(options.seed))
        keys = [f"key-{n}" for n in range(2 * options.turns)]
        turns = []
        with self.server(memory, 8 << 30, keys=keys) as server:
            for before, anew in zip(keys[::2], keys[1::2], strict=True):
                talk = Talk([{"role": "system", "content": text}])
                async with client_of(server, before) as client, client_of(server, anew) as other:
                    first = await talk.ask(client, self.name, QUESTIONS[0], options.answer)
                    again = Talk(list(talk.messages))
                    goes_on = await talk.ask(client, self.name, QUESTIONS[1], options.answer)
                    all_of_it = await again.ask(other, self.name, QUESTIONS[1], options.answer)
                (one,) = await conversations(server, before)
                turns.append((first, goes_on, all_of_it))
                assert goes_on.cached > 0
                assert all_of_it.cached == first.cached == 0
        read, asked = [two.first for _, _, two in turns], [two.first for _, two, _ in turns]
        return {
            "memory": memory, "n": len(turns), "tokens": turns[0][1].prompt, "cached_tokens": turns[0][1].cached,
            "read_again": middle(read), "continued": middle(asked), "first_read": middle([one.first for one, _, _ in turns]),
            "ratio": round(statistics.median(read) / statistics.median(asked), 2),
            "ratio_of_each_turn": [round(a / b, 2) for a, b in zip(read, asked, strict=True)],
            "bytes_held": one["bytes_held"], "bytes_full": one["bytes_full"],
        }  # fmt: skip

    async def fair(self, memory: str) -> dict[str, Any]:
        """Short questions, one after another, while a long text is read; and as many afterwards."""
        options = self.options
        text = text_of(options.long, self.tokenizer, random.Random(options.seed))
        beside: list[float] = []
        with self.server(memory, 8 << 30) as server:
            async with client_of(server) as client:
                await self._short(client, -1)  # the first request warms up
                reading = asyncio.create_task(
                    stream(client, self.name, [{"role": "user", "content": text}], options.answer)
                )
                await asyncio.sleep(0.5)
                while not reading.done():
                    beside.append((await self._short(client, len(beside))).first)
                alone = [(await self._short(client, 1000 + n)).first for n in range(max(3, len(beside)))]
                long = await reading
        return {
            "memory": memory, "n": len(beside), "tokens": long.prompt, "long_first_token": round(long.first, 3),
            "beside": middle(beside), "beside_most": round(max(beside, default=0), 3), "alone": middle(alone),
            "alone_most": round(max(alone), 3),
        }  # fmt: skip

    async def _short(self, client: AsyncOpenAI, number: int) -> Answered:
        asked = {"role": "user", "content": f"Question {number}: is the sky blue?"}
        return await stream(client, self.name, [asked], 1)

    async def batch(self, memory: str) -> dict[str, Any]:
        """So many answers at once, in turns; the fastest of the turns counts."""
        options = self.options
        speeds: dict[int, list[float]] = {many: [] for many in options.beside}
        with self.server(memory, 8 << 30) as server:
            async with client_of(server) as client:
                await self._short(client, -1)
                for turn in range(options.turns):
                    for many in options.beside:
                        speeds[many].append(await self._speed(client, many, turn))
        return {
            "memory": memory, "n": options.turns, "tokens": options.written,
            "tokens_per_second": {str(many): round(max(found), 2) for many, found in speeds.items()},
            "tokens_per_second_of_each_turn": {str(many): [round(s, 2) for s in found] for many, found in speeds.items()},
        }  # fmt: skip

    async def _speed(self, client: AsyncOpenAI, many: int, turn: int) -> float:
        """Tokens a second of all answers, from the first token of the first one on."""
        no_end = {str(self.tokenizer.eos_token_id): -100}
        asked = [[{"role": "user", "content": f"Turn {turn}: write story {n} of {many}."}] for n in range(many)]
        answers = await asyncio.gather(
            *(stream(client, self.name, one, self.options.written, logit_bias=no_end) for one in asked)
        )
        began = min(one.began + one.first for one in answers)
        ended = max(one.began + one.seconds for one in answers)
        return sum(one.written for one in answers) / (ended - began)


# -- rows --------------------------------------------------------------------------------------------------------------


def parts(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Measures and memories, in the order they are taken."""
    single = [(measure, options.memory) for measure in ("sooner", "fair", "batch")]
    return [(m, name) for m, name in [*single, *(("load", name) for name in MEMORIES)] if m in options.measures]


def settings(measure: str, options: argparse.Namespace) -> dict[str, Any]:
    """The options that a measure depends on."""
    used = {
        "load": ("conversations", "tokens", "rounds", "hold", "at_once", "answer"),
        "sooner": ("long", "turns", "answer"), "fair": ("long", "answer"), "batch": ("beside", "turns", "written"),
    }  # fmt: skip
    chosen = {name: getattr(options, name) for name in used[measure]}
    return chosen | {
        "model": Path(options.model).name,
        "budget": options.budget,
        "dtype": "float32",
        "seed": options.seed,
    }


def known(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows that stay: of measures that are not asked for, and of this commit with these options."""
    found = rows.read(options.name)
    now = commit()
    return [
        row for row in found
        if row["measure"] not in options.measures
        or (not options.again and row["commit"] == now and row["settings"] == settings(row["measure"], options))
    ]  # fmt: skip


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--memory", default="universal", choices=MEMORIES, help="of sooner, fair and batch")
    parser.add_argument("--measures", nargs="*", default=["load", "sooner", "fair", "batch"])
    parser.add_argument("--budget", type=float, default=0.25)
    parser.add_argument("--conversations", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=3600, help="of a conversation's text, give or take a fifth")
    parser.add_argument("--rounds", type=int, default=1, help="follow-up questions to each conversation")
    parser.add_argument("--hold", type=float, default=3, help="conversations that the full cache has room for")
    parser.add_argument("--at-once", type=int, default=2, help="requests that are open at any time")
    parser.add_argument("--answer", type=int, default=16, help="tokens of an answer at most")
    parser.add_argument("--long", type=int, default=6000, help="tokens of the text of sooner and fair")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--beside", type=int, nargs="*", default=[1, 2, 4, 8], help="answers side by side")
    parser.add_argument("--written", type=int, default=48, help="tokens of each of these answers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="serving", help="of the row file")
    parser.add_argument("--again", action="store_true", help="measure everything again")
    return parser.parse_args()


def main() -> None:
    options = read_options()
    torch.set_num_threads(options.threads)
    written = known(options)
    bench = Bench(options)
    for measure, memory in parts(options):
        if any(row["measure"] == measure and row["memory"] == memory for row in written):
            continue
        work: Coroutine[Any, Any, dict[str, Any]] = getattr(bench, measure)(memory)
        row = {"measure": measure, "settings": settings(measure, options)} | asyncio.run(work)
        written.append(row)
        console.print_json(json.dumps(row))
        rows.write(options.name, written)


if __name__ == "__main__":
    main()
