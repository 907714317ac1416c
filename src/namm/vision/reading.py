"""Watching under a memory, and asking afterwards: the pictures are read before the memory knows the question.

Every memory decides for the last time at the end of the pictures, where its bytes are measured; the question follows
and is kept. An answer is one token, such as the letter of a choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from namm.errors import ConfigurationError
from namm.evaluation import Method, check_bytes, plan_for
from namm.memory.attach import find_decoder
from namm.memory.cache import MemoryCache
from namm.memory.ledger import Held, held_by
from namm.memory.pieces import check_pieces
from namm.memory.plan import Plan
from namm.memory.prefix import Prefix
from namm.memory.reading import ask, read
from namm.policies import KeepAll

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Query:
    """A question about a clip.

    Attributes:
        kind: for the table.
        ids: its tokens, up to the answer.
        answer: the right token.
        options: tokens to choose from; all there are if empty.
    """

    kind: str
    name: str
    ids: tuple[int, ...]
    answer: int
    options: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Showing:
    """A clip as a model is given it, with what is asked about it.

    Attributes:
        length: for the table, such as frames.
        inputs: `input_ids` `[1, token]` up to the question, with the pixel values.
        thinned: the same with fewer frames, about the given share of its tokens.
    """

    name: str
    length: int
    inputs: Inputs
    queries: tuple[Query, ...]
    thinned: Callable[[float], Inputs]

    @property
    def tokens(self) -> int:
        return self.inputs["input_ids"].shape[1]


@dataclass(frozen=True, eq=False)
class Listing:
    """A clip that was not read yet.

    Attributes:
        asked: kind and name of every question about it.
        load: reads it.
    """

    name: str
    length: int
    asked: tuple[tuple[str, str], ...]
    load: Callable[[], Showing]


@dataclass(frozen=True)
class Reply:
    """How a question was answered: whether the right token is the likeliest, and its negative log-likelihood."""

    query: Query
    right: bool
    nll: float


class Watcher:
    """Shows clips to one model.

    Args:
        step: the last update falls at a multiple of this many tokens, see `evaluation.config.alignment`.
    """

    def __init__(self, model: PreTrainedModel, interval: int, step: int) -> None:
        self.model, self.interval, self.step = model, interval, step
        check_pieces(find_decoder(model), "questions that are asked after a clip was read")

    def boundary(self, showing: Showing) -> int:
        """Tokens read at the last update: up to a step less than all.

        Raises:
            ConfigurationError: they are too few to forget any.
        """
        length = showing.tokens // self.step * self.step
        if length < 2 * self.step:
            raise ConfigurationError(
                f"clips of at least {2 * self.step} tokens", f"{showing.tokens} in {showing.name}", "Show more frames."
            )
        return length

    @torch.no_grad()
    def whole(self, showing: Showing) -> Prefix:
        """The shapes of what was read of the clip, from which the bytes of every memory are known."""
        ids, images = _apart(showing.inputs)
        return Prefix.of(self.model, ids, **images).without_tokens()

    @torch.no_grad()
    def watch(self, showing: Showing, whole: Prefix, method: Method) -> tuple[MemoryCache, Held]:
        """The clip, read under a memory, and what is held of it.

        Raises:
            ConfigurationError: the budget does not hold the policy's state and a token.
        """
        length = self.boundary(showing)
        plan = plan_for(method, whole, length, self.interval, after=showing.tokens - length)
        cache = self._read(showing.inputs, plan)
        cache.trim()
        held = held_by(cache, 0, plan, whole.footprint(plan), showing.tokens)
        check_bytes(method, held)
        return cache, held

    @torch.no_grad()
    def watch_thinned(self, showing: Showing, whole: Prefix, share: float) -> tuple[MemoryCache, Held]:
        """As `watch`, for the usual way to save bytes: fewer frames, all of which are kept."""
        inputs, plan = showing.thinned(share), Plan(KeepAll(), None, self.interval)
        cache = self._read(inputs, plan)
        seen = inputs["input_ids"].shape[1]
        full = held_by(cache, 0, plan, whole.footprint(plan), seen)
        scale = showing.tokens / seen
        return cache, Held(
            full.slots,
            round(full.slots * scale),
            full.bytes_held,
            round(full.bytes_held * scale),
            full.bytes_per_slot,
            full.bytes_held,
        )

    def _read(self, inputs: Inputs, plan: Plan) -> MemoryCache:
        cache = MemoryCache.planned(self.model.config, (plan,))
        ids, images = _apart(inputs)
        read(self.model, cache, ids, **images)
        return cache

    @torch.no_grad()
    def ask(self, cache: MemoryCache, queries: Sequence[Query]) -> list[Reply]:
        """Every question by itself, from the same memory."""
        replies = []
        for query in queries:
            logits = ask(self.model, cache, query.ids)[0, -1].float()
            options = torch.tensor(query.options or range(len(logits)), device=logits.device)
            likely = torch.log_softmax(logits[options], 0)
            place = int((options == query.answer).nonzero())
            replies.append(Reply(query, int(likely.argmax()) == place, -float(likely[place])))
        return replies


def _apart(inputs: Inputs) -> tuple[Tensor, dict[str, Any]]:
    """The ids, and all that belongs to pictures."""
    return inputs["input_ids"], {name: value for name, value in inputs.items() if name != "input_ids"}
