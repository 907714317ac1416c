"""What is read under a memory: the tokens of a text, where they stand in it, and the interval between two updates."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.errors import ConfigurationError, ModelError
from namm.models import context_length
from namm.policies import MemoryPolicy, own_interval
from namm.report.token_classes import Span


def to_read(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    policy: MemoryPolicy,
    update_interval: int | None,
) -> tuple[list[int], tuple[Span, ...], int]:
    """Tokens of a text, where they stand, and the interval to read them at.

    Raises:
        ConfigurationError, ModelError: see `_tokenised`, `_check_context` and `fitting_interval`.
    """
    ids, spans = _tokenised(tokenizer, text)
    _check_context(model, len(ids))
    return ids, spans, update_interval if update_interval is not None else fitting_interval(policy, len(ids))


def fitting_interval(policy: MemoryPolicy, tokens: int) -> int:
    """The interval the memory was evolved with, or 512; for a shorter text the largest that gives one update.

    Raises:
        ConfigurationError: not even one hop fits into the text.
    """
    fitting = min(own_interval(policy), tokens // policy.hop * policy.hop)
    if fitting == 0:
        raise ConfigurationError(
            f"a text of at least {policy.hop} tokens, the least that {policy.name} can judge",
            f"{tokens} tokens",
            "Give a longer text.",
        )
    return fitting


def _tokenised(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], tuple[Span, ...]]:
    """Token ids, and where each token stands in the text."""
    if not text.strip():
        raise ConfigurationError("a text to read", "an empty one" if not text else "white space only", "Give a text.")
    if not tokenizer.is_fast:
        raise ModelError(
            "a tokenizer that knows where its tokens stand in the text",
            type(tokenizer).__name__,
            "Load the fast tokenizer of this model: AutoTokenizer.from_pretrained(..., use_fast=True).",
        )
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    return list(encoded["input_ids"]), tuple((start, stop) for start, stop in encoded["offset_mapping"])


def _check_context(model: PreTrainedModel, tokens: int) -> None:
    """Raise if the model was not made for so many tokens."""
    longest = context_length(model)
    if longest is not None and tokens > longest:
        raise ConfigurationError(
            f"a text of at most {longest:,} tokens, the context of this model",
            f"{tokens:,} tokens",
            "Cut the text, or inspect it with a model of longer context.",
        )
