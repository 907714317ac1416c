"""What a server offers: one model, its tokenizer, and the memories it can be asked with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.calibrating import calibrated
from namm.errors import ConfigurationError, ModelError
from namm.memory.attach import find_decoder
from namm.memory.cache import make_plan
from namm.memory.identity import fingerprint
from namm.memory.ledger import Footprint
from namm.memory.pieces import check_pieces
from namm.memory.plan import Plan
from namm.memory.prefix import Prefix
from namm.models import context_length
from namm.policies import own_interval
from namm.selection import Budget, Selection
from namm.serving.grammar import Grammars
from namm.serving.vocabulary import Vocabulary
from namm.trace import Shape, rule_of, shape_of

_UNBOUNDED = 1 << 20  # context of a model whose configuration names none


@dataclass(frozen=True)
class Limits:
    """What a server may be asked for.

    Attributes:
        memory: bytes of all conversations together, running and resting.
        body: bytes of a request.
        answer: tokens of one answer.
        context: tokens of a conversation; the model's own if None.
        parallel: requests that are read and answered at once.
        waiting: requests of one key that may queue for their turn.
        waiting_all: requests of all keys that may; a key with none in the queue always gets a place for one.
        chunk: tokens of a prompt that are read before others get a turn.
        spilled: bytes of conversations on disk.
        step_timeout: seconds that a chunk or a token may take before the server is called stalled.
    """

    memory: int = 2 << 30
    body: int = 4 << 20
    answer: int = 4096
    context: int | None = None
    parallel: int = 16
    waiting: int = 64
    waiting_all: int = 256
    chunk: int = 256
    spilled: int = 16 << 30
    step_timeout: int = 15

    @property
    def bodies(self) -> int:
        """Bodies of one client that may be on their way at once: as many as could be served or wait."""
        return self.parallel + self.waiting

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and (not isinstance(value, int) or value < (0 if name == "waiting" else 1)):
                raise ConfigurationError(f"a positive whole number for {name}", value, "Leave it out for the default.")


@dataclass(frozen=True)
class Served:
    """A model with a memory, under the name that requests call it by.

    Attributes:
        memory: the memory's name.
        plan: what it does.
        cost: in bytes, over all layers.
    """

    id: str
    memory: str
    plan: Plan
    cost: Footprint

    @property
    def rule(self) -> str:
        """How much is kept: "keeps 25 % of the tokens read"."""
        return rule_of(self.plan)

    def bytes_for(self, tokens: int) -> int:
        """The most bytes that a conversation of so many tokens holds at any time."""
        return self.cost.most(self.plan, tokens)


class Host:
    """One model and the memories it is served with; the first is the default.

    Args:
        name: what requests call the model; with another memory than the first, `name+memory`.
        budget: share of the tokens each memory may keep; None for a memory's own threshold.
        update_interval: tokens between two updates; what the memory was evolved with, or 512, if None.

    Raises:
        ConfigurationError: two memories of one name, or options that do not fit together.
        ModelError: the model cannot be given a memory, or its tokenizer is not a fast one.
        NotFoundError: no memory has that name.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        memories: list[str | Path],
        budget: float | None,
        update_interval: int | None = None,
        context: int | None = None,
    ) -> None:
        if not tokenizer.is_fast:
            raise ModelError(
                "a fast tokenizer, which can stream", type(tokenizer).__name__,
                "Load the fast tokenizer of this model: AutoTokenizer.from_pretrained(..., use_fast=True).",
            )  # fmt: skip
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.decoder = find_decoder(model)
        check_pieces(self.decoder, "a server, which reads prompts in chunks and goes on with conversations")
        self.shape: Shape = shape_of(model.config, model.dtype)
        self.print = fingerprint(model)
        own = context_length(model) or _UNBOUNDED
        if context is not None and context > own:
            raise ConfigurationError(f"a context of at most {own:,} tokens, the model's own", context, "Lower it.")
        self.context = context or own
        self.served = {served.id: served for served in self._offers(memories, budget, update_interval)}

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer)

    @property
    def token_count(self) -> int:
        """Tokens that the model knows, at least as many as its tokenizer."""
        count: int = self.model.get_input_embeddings().num_embeddings
        return count

    @cached_property
    def grammars(self) -> Grammars:
        """
        Raises:
            NotFoundError: llguidance is not installed.
        """
        ends = self.model.generation_config.eos_token_id
        return Grammars(self.tokenizer, self.token_count, ends if isinstance(ends, list) else [ends] if ends else [])

    def tokens(self, text: str, special: bool) -> list[int]:
        """The tokens of a text; `special`: with those that the tokenizer sets around it."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def text_of(self, ids: list[int], special: bool = False) -> str:
        """The text of tokens; `special`: with special ones."""
        text = self.tokenizer.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def _offers(self, memories: list[str | Path], budget: float | None, interval: int | None) -> list[Served]:
        prefix = Prefix.of(self.model, torch.tensor([[0, 0]], device=self.model.device)).without_tokens()
        offers: list[Served] = []
        for memory in memories:
            policy = calibrated(memory, self.model, self.tokenizer)
            selection: Selection | None = None
            if policy.evicts:
                selection = Budget(fraction=budget) if budget is not None else policy.default_selection()
            plan = make_plan(policy, selection, interval if interval is not None else own_interval(policy))
            called = _short_name(memory)
            ident = f"{self.name}+{called}" if offers else self.name
            if ident in {offer.id for offer in offers} or (offers and called == offers[0].memory):
                raise ConfigurationError("memories of different names", called, "Name each memory once.")
            offers.append(Served(ident, called, plan, prefix.footprint(plan)))
        return offers


def _short_name(memory: str | Path) -> str:
    """The last part of a memory's folder or id: `builtin:` and folders left out."""
    return str(memory).rstrip("/").replace("builtin:", "").rpartition("/")[2]


def describe_model(served: Served, host: Host) -> dict[str, Any]:
    """An entry of `/v1/models`."""
    return {
        "id": served.id,
        "object": "model",
        "created": 0,
        "owned_by": "namm",
        "namm": {
            "memory": served.memory,
            "rule": served.rule,
            "update_interval": served.plan.update_interval,
            "context": host.context,
        },
    }
