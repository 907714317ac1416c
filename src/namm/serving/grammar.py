"""Answers in JSON: which tokens may come next, by llguidance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from namm.packages import package
from namm.serving.refusals import invalid

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_SPACE = r"[ \n\t]{0,32}"  # between two tokens of JSON; without an end, small models write nothing else


class Grammars:
    """Makes grammars for a tokenizer.

    Args:
        tokens: as many as the model has logits.
        ends: tokens that end an answer.

    Raises:
        NotFoundError: llguidance is not installed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens: int, ends: list[int]) -> None:
        made = package("llguidance.hf", "serve").from_tokenizer(tokenizer, n_vocab=tokens, eos_token=ends or None)
        self._tokenizer: LLTokenizer = made

    def of(self, schema: dict[str, Any]) -> Grammar:
        """
        Raises:
            Refusal: a schema that cannot be followed.
        """
        from llguidance import LLMatcher

        written = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": _SPACE})
        grammar = Grammar(LLMatcher(self._tokenizer, written, log_level=0))
        grammar.allowed()  # the first step is the dearest one
        return grammar


class Grammar:
    """What an answer may go on with."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def copy(self) -> Grammar:
        """The same for another answer."""
        return Grammar(self._matcher.deep_copy())

    def allowed(self) -> Tensor:
        """Whether each token may come next.

        Raises:
            Refusal: the schema cannot be followed.
        """
        bits = self._matcher.compute_bitmask()
        self._check()
        return torch.from_numpy(np.unpackbits(np.frombuffer(bits, dtype=np.uint8), bitorder="little")).bool()

    def take(self, token: int) -> None:
        """This token came.

        Raises:
            Refusal: the schema cannot be followed.
        """
        self._matcher.consume_token(token)
        self._check()

    @property
    def complete(self) -> bool:
        """Whether nothing may follow."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().partition("\n")[0]
            raise invalid(f"expected a JSON schema that answers can follow; got: {reason}.", "response_format")
