"""The text of an answer while it is being written."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from namm.detokeniser import Detokeniser


@dataclass(frozen=True)
class TokenLogprob:
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
    tokens: tuple[TokenLogprob, ...] = ()


class Text:
    """Tokens in, text out, up to the first stop sequence, which is not part of it.

    Attributes:
        shown: what was given out so far.
        stopped: whether a stop sequence came.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: tuple[str, ...], special: bool) -> None:
        """`special`: whether special tokens are part of the text."""
        self._pieces = Detokeniser(tokenizer, special, longest=None)
        self._stops = stops
        self._held = ""  # might be the beginning of a stop sequence
        self._scored: deque[tuple[int, int, TokenLogprob]] = deque()  # not given out: from and up to which character
        self._written = 0  # characters
        self.shown = ""
        self.stopped = False

    def add(self, token: int, scored: TokenLogprob | None = None) -> Piece:
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
