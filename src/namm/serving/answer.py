"""The text of an answer while it is being written, and its way to the client that waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from transformers import PreTrainedTokenizerBase

from namm.report.trace import Event, Pieces
from namm.serving.refusals import Refusal


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
        self.shown = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that can be shown now."""
        text = self._held + self._pieces.next(token)
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._show(text[: min(found)], "")
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        return self._show(text[: len(text) - held], text[len(text) - held :])

    def close(self) -> str:
        """What was held back: no stop sequence, and a character that was never completed."""
        return "" if self.stopped else self._show(self._held + self._pieces.rest(), "")

    def _show(self, text: str, held: str) -> str:
        self._held = held
        self.shown += text
        return text


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
        self._queue: asyncio.Queue[tuple[int, str | Event | Refusal | None]] = asyncio.Queue()
        self.cancelled = False

    def put(self, choice: int, item: str | Event | Refusal | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (choice, item))

    async def read(self, count: int) -> AsyncIterator[tuple[int, str | Event | None]]:
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

    def text(self, text: str) -> None:
        if text:
            self._answers.put(self._choice, text)

    def event(self, event: Event) -> None:
        self._answers.put(self._choice, event)

    def end(self) -> None:
        self._answers.put(self._choice, None)

    def fail(self, reason: Refusal) -> None:
        self._answers.put(self._choice, reason)
