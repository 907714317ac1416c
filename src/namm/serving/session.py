"""One request's life in the engine: it waits, is read, is answered, and is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto

from jaxtyping import Float
from torch import Tensor

from namm.detokeniser import Detokeniser, pieces
from namm.memory.cache import MemoryCache
from namm.serving.conversations import Conversation, Match
from namm.serving.host import Host, Served
from namm.serving.refusals import Refusal
from namm.serving.sampling import Sampler, Sampling, scored
from namm.serving.text import Piece, Text, TokenLogprob
from namm.trace import Event, Recorder, end_event, start_event, token_event


class Status(Enum):
    """Where a session stands; it only ever goes on to a later one."""

    WAITING = auto()
    READING = auto()
    ANSWERING = auto()
    OVER = auto()


class Outbox:
    """From the engine's thread to the event loop: what becomes of the sessions of a request.

    Attributes:
        closed: the client is gone, or has its answer.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: asyncio.Queue[tuple[int, Piece | Event | Refusal | None]] = asyncio.Queue()
        self.closed = False

    def put(self, choice: int, item: Piece | Event | Refusal | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (choice, item))

    async def read(self, count: int) -> AsyncIterator[tuple[int, Piece | Event | None]]:
        """What comes of `count` sessions, each with its number: text, events of the memory, and None for its end.

        Raises:
            Refusal: there is no answer.
        """
        while count:
            choice, item = await self._queue.get()
            if isinstance(item, Refusal):
                raise item
            count -= item is None
            yield choice, item


class MemoryWatcher:
    """Tells a client what becomes of its memory, in the events of `namm.trace`."""

    def __init__(self, host: Host, served: Served) -> None:
        self._host, self._served = host, served
        self._words = Detokeniser(host.tokenizer)
        self._recorder = Recorder()

    def start(self, cache: MemoryCache, ids: list[int]) -> Event:
        host, served = self._host, self._served
        self._recorder = Recorder(cache)
        return start_event(
            cache,
            host.shape,
            model=host.name,
            memory=served.memory,
            rule=served.rule,
            interval=served.plan.update_interval,
            tokens=pieces(host.tokenizer, ids),
        )

    def after(self, cache: MemoryCache) -> Event:
        return self._recorder.after(cache)

    def wrote(self, token: int) -> Event:
        return token_event([self._words.next(token)])


@dataclass(eq=False)
class Session:
    """One answer to a prompt, from its arrival to its end.

    Attributes:
        prompt: the whole prompt as text, by which a chat is found again.
        prompt_ids: the whole prompt as tokens; of a continued chat, as they were read.
        most: tokens of the answer at most.
        text: the answer's text so far.
        choice: number of the answer in its request.
        watcher: tells events of the memory as well, if they were asked for.
        echo: whether the prompt is part of what is told.
        likeliest: tokens to name in each place; None where no probabilities were asked for.
        branches: further answers to the same prompt, which begin where it was read.
        branch: whether this is one.
        ids: prompt and answer.
        unread: tokens of `ids`, the last ones, that the model has not read.
        reused: tokens that a continued conversation had read.
        reserved: bytes this session may hold.
        forgotten_before: tokens that the continued conversation had forgotten, as a mean over heads.
        conversation: id of what it continues, then of what it became.
        match: what it goes on with, while it waits.
        finish: why the answer ended: "stop", "length" or "cancelled"; None until then.
        failed: why there is no whole answer.
    """

    id: str
    owner: str
    served: Served
    chat: bool
    prompt: str
    prompt_ids: list[int]
    sampling: Sampling
    most: int
    text: Text
    outbox: Outbox
    choice: int = 0
    watcher: MemoryWatcher | None = None
    echo: bool = False
    likeliest: int | None = None
    branches: tuple[Session, ...] = ()
    branch: bool = False
    status: Status = Status.WAITING
    ids: list[int] = field(default_factory=list)
    unread: int = 0
    reused: int = 0
    reserved: int = 0
    forgotten_before: float = 0.0
    finish: str | None = None
    failed: Refusal | None = None
    match: Match | None = None
    cache: MemoryCache | None = None
    sampler: Sampler | None = None
    came: float = field(default_factory=time.monotonic)
    began: float | None = None  # when it was admitted
    first: float | None = None  # when its first token came
    ended: float | None = None
    kept: float = 0.0
    bytes_held: int = 0
    bytes_full: int = 0
    conversation: str | None = None

    @property
    def answer_ids(self) -> list[int]:
        return self.ids[len(self.prompt_ids) :]

    @property
    def read_ids(self) -> list[int]:
        """All that the model has read."""
        return self.ids[: len(self.ids) - self.unread]

    @property
    def width(self) -> int:
        """Answers."""
        return 1 + len(self.branches)

    @property
    def scored(self) -> bool:
        """Whether the prompt's own probabilities were asked for, so that all of it has to be read."""
        return self.echo and self.likeliest is not None

    @property
    def seconds(self) -> float:
        """From its admission to its end."""
        return 0.0 if self.began is None or self.ended is None else self.ended - self.began

    def begin(self, cache: MemoryCache, sampler: Sampler) -> None:
        """It is admitted; `cache` has read the first `reused` tokens."""
        self.status, self.began, self.match = Status.READING, time.monotonic(), None
        self.cache, self.sampler = cache, sampler
        self.ids, self.unread = list(self.prompt_ids), len(self.prompt_ids) - self.reused
        if self.echo:
            self._tell(Piece(self.prompt, (TokenLogprob(self.ids[0], None),) if self.scored else ()))
        if self.watcher is not None:
            self.outbox.put(self.choice, self.watcher.start(cache, self.ids))

    def next_chunk(self, most: int) -> list[int]:
        """What is to be read next: at most so many tokens, and no further than the next update."""
        seen = len(self.ids) - self.unread
        due = self.served.plan.next_update(seen)
        count = min(most, self.unread, self.unread if due is None else due - seen)
        return self.ids[seen : seen + count]

    def was_read(self, count: int, logits: Float[Tensor, "place vocabulary"]) -> None:
        """So many tokens of the prompt were read; of each of them, if it is `scored`, there are logits."""
        seen = len(self.ids) - self.unread
        if self.scored:
            following = self.ids[seen + 1 : seen + 1 + count]
            self._tell(Piece("", tuple(scored(logits[: len(following)], following, self.likeliest or 0))))
        self.unread -= count
        self._watch(reading=True)

    def branch_off(self, parent: Session, sampler: Sampler, forgotten: float) -> None:
        """Begin where the prompt of another was read."""
        assert parent.cache is not None
        self.cache, self.sampler, self.began = parent.cache.fork(), sampler, parent.began
        self.prompt_ids, self.ids, self.forgotten_before = parent.prompt_ids, list(parent.ids), forgotten

    def wrote_was_read(self) -> None:
        """The model has read the last token that it wrote."""
        self.unread = 0
        self._watch(reading=False)

    def write(self, token: int, logits: Float[Tensor, "1 vocabulary"]) -> str | None:
        """Show the next token of the answer; why it was the last one, if it was."""
        assert self.sampler is not None
        self.ids.append(token)
        self.unread = 1
        self.first = self.first or time.monotonic()
        if self.watcher is not None:
            self.outbox.put(self.choice, self.watcher.wrote(token))
        told = None if self.likeliest is None else scored(logits, [token], self.likeliest)[0]
        self._tell(self.text.add(token, told))
        if self.sampler.ends(token) or self.text.stopped:
            return "stop"
        return "length" if len(self.answer_ids) >= self.most else None

    def complete(self, reason: str, rest: Conversation, goes_on: bool) -> None:
        """Tell its end; `rest`: what it became, which may go on or not."""
        self.kept, self.bytes_held, self.bytes_full = rest.kept, rest.bytes_held, rest.bytes_full
        self.conversation = rest.id if goes_on else None
        self.ended = time.monotonic()
        self.first = self.first or self.ended
        if self.watcher is not None and rest.cache is not None:
            self.outbox.put(self.choice, end_event(rest.cache))
        self._end(reason)

    def cancel(self) -> None:
        """Its client left."""
        self._end("cancelled")

    def fail(self, reason: Refusal) -> None:
        self.leave()
        self.failed = reason
        self.outbox.put(self.choice, reason)

    def leave(self) -> None:
        """It runs no more; what it held is free unless it comes to rest."""
        self.status, self.cache, self.match = Status.OVER, None, None

    def _end(self, reason: str) -> None:
        self.leave()
        self.finish = reason
        self.outbox.put(self.choice, None)

    def close_text(self) -> None:
        """Tell what was held back of its text."""
        self._tell(self.text.close())

    def _tell(self, piece: Piece) -> None:
        if piece.text or piece.tokens:
            self.outbox.put(self.choice, piece)

    def _watch(self, reading: bool) -> None:
        """Show what became of the memory; while it answers, only what was forgotten."""
        if self.watcher is not None and self.cache is not None:
            event = self.watcher.after(self.cache)
            if reading or event["type"] == "update":
                self.outbox.put(self.choice, event)
