"""The text of an answer while it is being written, and how it reaches the client that waits for it."""

from __future__ import annotations

import asyncio
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.cli.serving.utils import response_events_to_chunks
from transformers.utils.chat_parsing import ResponseParser

from namm.report.trace import Pieces
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


class MemoryEvent(str):
    """An event of the memory page on its way to the client, between pieces of text."""

    event: dict[str, Any]

    @classmethod
    def of(cls, event: dict[str, Any]) -> MemoryEvent:
        made = cls()
        made.event = event
        return made


class Failure(str):
    """The reason why an answer ends early, on the same way."""

    refusal: Refusal

    @classmethod
    def of(cls, refusal: Refusal) -> Failure:
        made = cls(refusal.message)
        made.refusal = refusal
        return made


class Streamer:
    """Hands an answer to the event loop as transformers' handlers expect it: text, thoughts, tool calls, then None.

    Attributes:
        queue: what the handler reads.
        total_tokens: tokens written so far.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, parser: ResponseParser | None = None) -> None:
        self._loop, self._parser = loop, parser
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.total_tokens = 0
        self.cancelled = False
        if parser is not None:
            self._put(*response_events_to_chunks(parser.initial_events))

    def text(self, text: str) -> None:
        if text:
            self._put(*([text] if self._parser is None else response_events_to_chunks(self._parser.feed(text))))

    def event(self, event: dict[str, Any]) -> None:
        self._put(MemoryEvent.of(event))

    def end(self) -> None:
        if self._parser is not None:
            try:
                _, events = self._parser.finalize()
            except (ValueError, RuntimeError):  # the answer ended within a tool call
                events = []
            self._put(*response_events_to_chunks(events))
        self._put(None)

    def fail(self, reason: Refusal) -> None:
        self._put(Failure.of(reason), None)

    def cancel(self) -> None:
        """The client is gone."""
        self.cancelled = True

    def _put(self, *items: Any) -> None:
        if items and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._put_now, items)

    def _put_now(self, items: tuple[Any, ...]) -> None:
        for item in items:
            self.queue.put_nowait(item)
