"""Answers in JSON: which tokens may come next, by llguidance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic_core import to_json
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from namm.packages import package
from namm.serving.refusals import Refusal, invalid

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_MOST_BYTES = 1 << 15  # of a schema; what takes llguidance seconds is longer
_MOST_MERGED = 64  # schemas in allOf; 355 patterns there took two minutes
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

        if (size := len(to_json(schema))) > _MOST_BYTES:
            raise _not_followed(f"one of at most {_MOST_BYTES:,} bytes", f"{size:,}")
        if (merged := _merged(schema)) > _MOST_MERGED:
            raise _not_followed(f"one with at most {_MOST_MERGED} schemas in allOf", str(merged))
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
            reason = " ".join(self._matcher.get_error().split())[:200]
            raise _not_followed("one that answers can follow", reason)


def _merged(schema: Any) -> int:
    """How many schemas are in allOf, wherever that is."""
    if isinstance(schema, list):
        return sum(map(_merged, schema))
    if not isinstance(schema, dict):
        return 0
    both = schema.get("allOf")
    return (len(both) if isinstance(both, list) else 0) + sum(map(_merged, schema.values()))


def _not_followed(expected: str, got: str) -> Refusal:
    return invalid(f"expected a JSON schema, {expected}; got {got}.", "response_format")
