"""Recording what a memory holds of a text, for the memory page; the events are those of `namm.trace`."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.detokeniser import pieces
from namm.errors import ConfigurationError, ModelError
from namm.memory.attach import check_model, find_decoder
from namm.memory.cache import MemoryCache, make_plan
from namm.memory.plan import Plan
from namm.memory.reading import read
from namm.models import context_length
from namm.network import NAMM
from namm.policies import MemoryPolicy, own_interval, resolve
from namm.report.token_classes import Span
from namm.selection import Selection
from namm.trace import Event, Recorder, end_event, rule_of, shape_of, start_event


def record(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    memory: NAMM | MemoryPolicy | str | Path,
    selection: Selection | None = None,
    update_interval: int | None = None,
    *,
    names: tuple[str, str] | None = None,
) -> list[Event]:
    """Read `text` under a memory and record what it held after each update.

    Args:
        memory: as for `namm.attach`.
        selection: which scored tokens stay; a NAMM decides at its threshold if left out.
        update_interval: tokens between two updates; `fitting_interval` if left out.
        names: of the model and of the memory, for the page; their own if left out.

    Raises:
        ConfigurationError: the text is empty, too short for one update, or longer than the model's context; or
            options that do not fit together.
        ModelError: the tokenizer cannot say where its tokens stand in the text.
    """
    policy = resolve(memory)
    ids, _, interval = to_read(model, tokenizer, text, policy, update_interval)
    return events_of(model, tokenizer, ids, make_plan(policy, selection, interval), names)


def events_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    plan: Plan,
    names: tuple[str, str] | None = None,
) -> list[Event]:
    """The same of tokens, by a plan."""
    interval = plan.update_interval
    reader, remembered = names or (model.config.name_or_path or type(model).__name__, plan.policy.name)
    decoder = find_decoder(model)
    check_model(decoder, plan)
    events = [
        start_event(
            None, shape_of(decoder.config, model.dtype), model=reader, memory=remembered, rule=rule_of(plan),
            interval=interval, tokens=pieces(tokenizer, ids),
        )
    ]  # fmt: skip
    cache, recorder = MemoryCache.planned(decoder.config, (plan,)), Recorder()
    for start in range(0, len(ids), interval):
        read(model, cache, ids[start : start + interval])
        events.append(recorder.after(cache))
    return [*events, end_event(cache)]


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
