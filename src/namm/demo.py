"""`namm demo`: a language model reads a long text and is asked about it, under several memories of the same size.

Everything in the table is measured in the run that prints it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from namm.compat import cache_in, passing
from namm.errors import ConfigurationError
from namm.memory import MemoryCache, MemoryReport, attach
from namm.memory.ledger import report as held_in
from namm.models import context_length
from namm.policies import MemoryPolicy
from namm.selection import Budget
from namm.tasks import Encoded, Sample, encode, paragraphs

BOOK = "persuasion"
_FACT = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key?"
REPLY = "The pass key is"
_NEW_TOKENS = 12
_NEW_TOKENS_OF_OWN = 40

_Attachment = tuple[MemoryPolicy | str, Budget, int]


@dataclass(frozen=True)
class Story:
    """A text that is read, what is asked about it then, and what must come out if that is known.

    Attributes:
        fact: first and last token of the place where the answer stands.
    """

    text: torch.Tensor
    question: torch.Tensor
    answer: str | None = None
    fact: tuple[int, int] | None = None
    new_tokens: int = _NEW_TOKENS


@dataclass(frozen=True)
class Trial:
    """What one memory did with the story, as it was when the text had been read. Speeds in tokens per second."""

    name: str
    reply: str
    report: MemoryReport
    kept: list[list[list[int]]]
    prefill: float
    decode: float


def tell(tokenizer: PreTrainedTokenizerBase, tokens: int, depth: float, seed: int) -> Story:
    """A story of about `tokens` tokens of a novel with its fact at `depth` (0 start, 1 end) of the text."""
    rng = random.Random(seed)
    key = str(rng.randint(10000, 99999))
    book, length, chosen = paragraphs(BOOK), 0, []
    for paragraph in book[rng.randrange(len(book) // 2) :]:
        length += len(tokenizer.encode(paragraph, add_special_tokens=False))
        if length > tokens:
            break
        chosen.append(paragraph)
    fact = _FACT.format(key=key)
    chosen.insert(round(depth * len(chosen)), fact)
    encoded = encode(Sample("demo", str(seed), "\n\n".join(chosen), f"\n\n{QUESTION}", (key,), REPLY), tokenizer)
    text = tokenizer.decode(encoded.prompt)
    before = text[: text.index(fact)]
    start = len(tokenizer.encode(before, add_special_tokens=False))
    stop = len(tokenizer.encode(before + fact, add_special_tokens=False))
    return Story(*_tensors(encoded), key, (start, stop))


def tell_own(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, question: str) -> Story:
    """A text of the user's and their question.

    Raises:
        ConfigurationError: an empty text or question, or more tokens than the model can read.
    """
    if not text.strip() or not question.strip():
        raise ConfigurationError("a text and a question about it", "an empty one", "Give --file and --question.")
    encoded = encode(Sample("demo", "own", text, f"\n\n{question}", ("-",)), tokenizer)
    longest, asked = context_length(model), len(encoded.prompt) + _NEW_TOKENS_OF_OWN
    if longest is not None and asked > longest:
        raise ConfigurationError(
            f"a text that leaves room for the answer within {longest:,} tokens",
            f"{asked:,} with it",
            "Shorten it, or choose a --model with a longer context.",
        )
    return Story(*_tensors(encoded), new_tokens=_NEW_TOKENS_OF_OWN)


def _tensors(encoded: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([encoded.context]), torch.tensor([encoded.question])


def attachments(fraction: float, memory: MemoryPolicy, interval: int) -> dict[str, _Attachment | None]:
    """Name -> what to attach, all at the same budget and schedule; None is the untouched model."""
    budget = Budget(fraction=fraction)
    return {
        "full cache": None,
        "StreamingLLM": ("streaming", budget, interval),
        "H2O": ("h2o", budget, interval),
        "NAMM": (memory, budget, interval),
    }


@torch.inference_mode()
def _perform(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, story: Story, attachment: _Attachment | None
) -> Trial:
    """Read the text and answer, under one memory; None is the untouched model with its own cache."""
    text, question = story.text.to(model.device), story.question.to(model.device)
    with attach(model, *attachment) if attachment else nullcontext():
        start = time.perf_counter()
        cache = cache_in(model(text, logits_to_keep=1))
        if isinstance(cache, MemoryCache):
            cache.forget()
        report = held_in(cache)
        kept = _kept(cache, report)
        out = model(question, **passing(model, cache), logits_to_keep=1)
        reply = [int(out.logits[0, -1].argmax())]
        prefill = (text.shape[1] + question.shape[1]) / (time.perf_counter() - start)
        start = time.perf_counter()
        while len(reply) < story.new_tokens and reply[-1] != tokenizer.eos_token_id:
            out = model(torch.tensor([reply[-1:]], device=model.device), **passing(model, cache))
            reply.append(int(out.logits[0, -1].argmax()))
        decode = (len(reply) - 1) / (time.perf_counter() - start)
    answer = tokenizer.decode(reply, skip_special_tokens=True).strip()
    return Trial(name, answer.split("\n")[0] if story.answer else answer, report, kept, prefill, decode)


def _kept(cache: Cache, report: MemoryReport) -> list[list[list[int]]]:
    """Token positions held for the first row, `[layer][kv_head]`."""
    if isinstance(cache, MemoryCache):
        return [cache.kept_positions(layer)[0] for layer, rows in enumerate(report.kept) if rows]
    return [[list(range(count)) for count in rows[0]] for rows in report.kept]


def run(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, story: Story, rows: dict[str, _Attachment | None]
) -> Iterator[Trial]:
    """Outcomes one by one, after a short warm-up that no row pays for."""
    with torch.inference_mode():
        model(story.text[:, :64].to(model.device), logits_to_keep=1)
    for name, attachment in rows.items():
        yield _perform(name, model, tokenizer, story, attachment)


def verdict(trial: Trial, full: Trial, story: Story) -> str:
    """ "right" or "wrong" where the answer is known, else whether it is that of the full cache."""
    if story.answer is not None:
        return "right" if trial.reply.startswith(story.answer) else "wrong"
    return "the same" if trial.reply == full.reply else "another"


def picture(trials: list[Trial], story: Story, file: Path) -> Path:
    """The heat map of what each memory kept after reading."""
    from namm.report import kept_heatmap

    return kept_heatmap({o.name: o.kept for o in trials}, story.text.shape[1], file, story.fact)
