"""The text of an answer while it is being written, and its way to the client that waits for it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from namm.report.trace import Event, Pieces
from namm.serving.refusals import Refusal


@dataclass(frozen=True)
class Scored:
    """A token and how likely the model found it, before anything else chose.

    Attributes:
        logprob: the logarithm of its probability; None for the first token of a text.
        best: the most likely tokens in its place, likeliest first.
    """

    token: int
    logprob: float | None
    best: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """Some text, with its tokens if their probabilities were asked for."""

    text: str
    tokens: tuple[Scored, ...] = ()


class Text:
    """Tokens in, text out, up to the first stop sequence, which is not part of it.

    Attributes:
        shown: what was given out so far.
        stopped: whether a stop sequence came.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: tuple[str, ...], special: bool) -> None:
        """`special`: whether special tokens are part of the text."""
        self._pieces = Pieces(tokenizer, special, longest=None)
        self._stops = stops
        self._held = ""  # might be the beginning of a stop sequence
        self._scored: deque[tuple[int, int, Scored]] = deque()  # not given out: from and up to which character
        self._written = 0  # characters
        self.shown = ""
        self.stopped = False

    def add(self, token: int, scored: Scored | None = None) -> Piece:
        """The text that can be shown now, and those of the tokens that are `scored`."""
        piece = self._pieces.next(token)
        if scored is not None:
            self._scored.append((self._written, self._written + len(piece), scored))
        self._written += len(piece)
        text = self._held + piece
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._show(text[: min(found)], "")
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        return self._show(text[: len(text) - held], text[len(text) - held :])

    def close(self) -> Piece:
        """What was held back: no stop sequence, and a character that was never completed."""
        piece = self._show("" if self.stopped else self._held + self._pieces.rest(), "")
        left = [scored for start, _, scored in self._scored if not self.stopped or start < len(self.shown)]
        return Piece(piece.text, (*piece.tokens, *left))

    def _show(self, text: str, held: str) -> Piece:
        self._held = held
        self.shown += text
        tokens = []
        while self._scored and self._scored[0][1] <= len(self.shown):
            tokens.append(self._scored.popleft()[2])
        return Piece(text, tuple(tokens))


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that begin `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class Answers:
    """Where the answers to a request arrive: in the event loop, from the engine's thread.

    Attributes:
        cancelled: the client is gone.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: asyncio.Queue[tuple[int, Piece | Event | Refusal | None]] = asyncio.Queue()
        self.cancelled = False

    def put(self, choice: int, item: Piece | Event | Refusal | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (choice, item))

    async def read(self, count: int) -> AsyncIterator[tuple[int, Piece | Event | None]]:
        """What comes of `count` answers, each with its number: text, events of the memory, and None for its end.

        Raises:
            Refusal: there is no answer.
        """
        while count:
            choice, item = await self._queue.get()
            if isinstance(item, Refusal):
                raise item
            count -= item is None
            yield choice, item


class Streamer:
    """The engine's end of the way of one answer."""

    def __init__(self, answers: Answers, choice: int) -> None:
        self._answers, self._choice = answers, choice

    @property
    def cancelled(self) -> bool:
        return self._answers.cancelled

    def text(self, piece: Piece) -> None:
        if piece.text or piece.tokens:
            self._answers.put(self._choice, piece)

    def event(self, event: Event) -> None:
        self._answers.put(self._choice, event)

    def end(self) -> None:
        self._answers.put(self._choice, None)

    def fail(self, reason: Refusal) -> None:
        self._answers.put(self._choice, reason)
