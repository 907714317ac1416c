"""`namm demo`: a language model reads a novel with a fact hidden in it, under several memories of the same size.

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
from namm.memory import MemoryCache, MemoryReport, attach
from namm.memory.cache import storage_bytes
from namm.policies import MemoryPolicy
from namm.selection import Budget
from namm.tasks import Sample, encode, paragraphs

BOOK = "persuasion"
FACT = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key?"
REPLY = "The pass key is"

Contender = tuple[MemoryPolicy | str, Budget, int]


@dataclass(frozen=True)
class Story:
    """A prompt of a novel with a fact in it, and what must come out."""

    ids: torch.Tensor
    answer: str
    fact: tuple[int, int]


@dataclass(frozen=True)
class Outcome:
    """What one memory did with the story. Speeds in tokens per second."""

    name: str
    reply: str
    right: bool
    report: MemoryReport
    kept: list[list[list[int]]]
    prefill: float
    decode: float


def tell(tokenizer: PreTrainedTokenizerBase, tokens: int, depth: float, seed: int) -> Story:
    """A story of about `tokens` tokens with its fact at `depth` (0 start, 1 end) of the text."""
    rng = random.Random(seed)
    key = str(rng.randint(10000, 99999))
    book, length, chosen = paragraphs(BOOK), 0, []
    for paragraph in book[rng.randrange(len(book) // 2) :]:
        length += len(tokenizer.encode(paragraph, add_special_tokens=False))
        if length > tokens:
            break
        chosen.append(paragraph)
    fact = FACT.format(key=key)
    chosen.insert(round(depth * len(chosen)), fact)
    sample = Sample("demo", str(seed), "\n\n".join(chosen), f"\n\n{QUESTION}", (key,), REPLY)
    prompt = encode(sample, tokenizer).prompt
    text = tokenizer.decode(prompt)
    before = text[: text.index(fact)]
    start = len(tokenizer.encode(before, add_special_tokens=False))
    stop = len(tokenizer.encode(before + fact, add_special_tokens=False))
    return Story(torch.tensor([list(prompt)]), key, (start, stop))


def contenders(fraction: float, memory: MemoryPolicy, interval: int) -> dict[str, Contender | None]:
    """Name -> what to attach, all at the same budget and schedule; None is the untouched model."""
    budget = Budget(fraction=fraction)
    return {
        "full cache": None,
        "StreamingLLM": ("streaming", budget, interval),
        "H2O": ("h2o", budget, interval),
        "NAMM": (memory, budget, interval),
    }


@torch.inference_mode()
def perform(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    story: Story,
    contender: Contender | None,
    new_tokens: int = 12,
) -> Outcome:
    """Read the story and answer, under one memory; None is the untouched model with its own cache."""
    ids = story.ids.to(model.device)
    with attach(model, *contender) if contender else nullcontext():
        start = time.perf_counter()
        out = model(ids, logits_to_keep=1)
        reply = [int(out.logits[0, -1].argmax())]
        prefill = ids.shape[1] / (time.perf_counter() - start)
        cache = cache_in(out)
        report = _report(cache)
        kept = _kept(cache, report)
        start = time.perf_counter()
        for _ in range(new_tokens - 1):
            out = model(torch.tensor([reply[-1:]], device=model.device), **passing(model, cache))
            reply.append(int(out.logits[0, -1].argmax()))
        decode = (new_tokens - 1) / (time.perf_counter() - start)
    text = tokenizer.decode(reply, skip_special_tokens=True).strip().split("\n")[0]
    return Outcome(name, text, text.startswith(story.answer), report, kept, prefill, decode)


def _report(cache: Cache) -> MemoryReport:
    """What a memory, or transformers' own full cache, holds."""
    if isinstance(cache, MemoryCache):
        return cache.memory()
    held = storage_bytes([tensor for layer in cache.layers for tensor in (layer.keys, layer.values)])
    kept = [[[layer.get_seq_length()] * layer.keys.shape[1]] * layer.keys.shape[0] for layer in cache.layers]
    return MemoryReport(kept, held, held, held, cache.get_seq_length(), [0] * len(kept))


def _kept(cache: Cache, report: MemoryReport) -> list[list[list[int]]]:
    """Token positions held for the first row, `[layer][kv_head]`."""
    if isinstance(cache, MemoryCache):
        return [cache.kept_positions(layer)[0] for layer, rows in enumerate(report.kept) if rows]
    return [[list(range(count)) for count in rows[0]] for rows in report.kept]


def run(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, story: Story, rows: dict[str, Contender | None],
) -> Iterator[Outcome]:  # fmt: skip
    """Outcomes one by one, after a short warm-up that no row pays for."""
    with torch.inference_mode():
        model(story.ids[:, :64].to(model.device), logits_to_keep=1)
    for name, contender in rows.items():
        yield perform(name, model, tokenizer, story, contender)


def picture(outcomes: list[Outcome], story: Story, file: Path) -> Path:
    """The heat map of what each memory kept after reading."""
    from namm.report import kept_heatmap

    return kept_heatmap({o.name: o.kept for o in outcomes}, story.ids.shape[1], file, story.fact)
