"""What is forgotten: a text is read under a memory, and for each token it is counted which heads still hold it.

    model, tokenizer = namm.models.load_model()
    found = forgetting(model, tokenizer, text, "h2o", namm.Budget(fraction=0.25))
    for row in by_class(found):
        row.name, row.tokens, row.share, row.ratio

A memory judges at its updates only. Tokens read since the last one are all still held; they are *not judged* and
take no part in any share.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.errors import ConfigurationError, ModelError
from namm.memory.attach import attach, find_decoder
from namm.models import context_length
from namm.network import NAMM
from namm.policies import MemoryPolicy, own_interval, resolve
from namm.report.token_classes import CLASSES, Classes, Language, Span, classify
from namm.selection import Selection


@dataclass(frozen=True, eq=False)
class Forgetting:
    """What a memory held after it had read a text.

    Attributes:
        text: the text that was read.
        spans: first and past-the-last character of each token; equal for a special token.
        classes: the class of each token.
        layers: index in the model of each layer with a memory; others (sliding windows) have no share.
        heads: kv heads of a layer.
        kept: share of the layer's kv heads that hold the token.
        judged: whether the token was read before the last update.
        update_interval: tokens between two updates.
        positions: tokens held, `[layer][kv_head]`, ascending.
    """

    text: str
    spans: tuple[Span, ...]
    classes: Classes
    layers: tuple[int, ...]
    heads: int
    kept: Float[Tensor, "layer token"]
    judged: Bool[Tensor, " token"]
    update_interval: int
    positions: list[list[list[int]]]

    def share(self, layer: int | None = None) -> Float[Tensor, " token"]:
        """For each token the share of heads that hold it, in layer `layer` of the model or in all.

        Raises:
            ConfigurationError: that layer has no memory.
        """
        if layer is None:
            return self.kept.mean(0)
        if layer not in self.layers:
            raise ConfigurationError("the index of a layer with a memory", layer, f"Layers: {_ranges(self.layers)}.")
        return self.kept[self.layers.index(layer)]

    def mean(self, layer: int | None = None) -> float:
        """Share kept of all judged tokens."""
        return self.share(layer)[self.judged].mean().item()


@dataclass(frozen=True)
class ClassShare:
    """What was kept of one class of tokens; only judged tokens count.

    Attributes:
        tokens: judged tokens of the class.
        share: mean share of heads that hold such a token.
        ratio: `share` over that of all tokens of the text; above 1, the class is preferred.
        ratio_among_neighbours: `share` over that of all tokens read between the same two updates. A memory that looks
            at age only, such as a sliding window, has about 1 here. After a single update it equals `ratio`.
    """

    name: str
    tokens: int
    share: float
    ratio: float
    ratio_among_neighbours: float


@torch.inference_mode()
def forgetting(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    memory: NAMM | MemoryPolicy | str | Path,
    selection: Selection | None = None,
    update_interval: int | None = None,
    language: Language | None = None,
) -> Forgetting:
    """Read `text` under a memory and see what is held.

    Args:
        memory: as for `namm.attach`.
        selection: which scored tokens stay; a NAMM decides at its threshold if left out.
        update_interval: tokens between two updates; `fitting_interval` if left out.
        language: whether the text is "prose" or "code"; found by trying to parse it if left out.

    Raises:
        ConfigurationError: the text is empty, too short for one update, or longer than the model's context.
        ModelError: the tokenizer cannot say where its tokens stand in the text.
    """
    policy = resolve(memory)
    ids, spans, interval = to_read(model, tokenizer, text, policy, update_interval)
    decoder = find_decoder(model)
    with attach(model, policy, selection, interval) as handle:
        if policy.evicts and len(ids) < interval:
            raise ConfigurationError(
                f"at least {interval} tokens, the update interval", f"{len(ids)} tokens",
                "Nothing would be forgotten: lower the interval or give a longer text.",
            )  # fmt: skip
        decoder(input_ids=torch.tensor([ids], device=model.device), use_cache=True)
        held = handle.memory().kept
        layers = tuple(index for index, rows in enumerate(held) if rows)
        positions = [handle.kept_positions(index)[0] for index in layers]
    judged = torch.arange(len(ids)) < (len(ids) // interval * interval if policy.evicts else len(ids))
    return Forgetting(
        text, spans, classify(text, spans, language), layers, len(positions[0]), _shares(positions, len(ids)), judged,
        interval, positions,
    )  # fmt: skip


def to_read(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    policy: MemoryPolicy,
    update_interval: int | None,
) -> tuple[list[int], tuple[Span, ...], int]:
    """Tokens of a text, where they stand, and the interval to read them at.

    Raises:
        ConfigurationError, ModelError: see `tokenised`, `check_context` and `fitting_interval`.
    """
    ids, spans = tokenised(tokenizer, text)
    check_context(model, len(ids))
    return ids, spans, update_interval if update_interval is not None else fitting_interval(policy, len(ids))


def fitting_interval(policy: MemoryPolicy, tokens: int) -> int:
    """The interval the memory was evolved with, or 512; for a shorter text the largest that gives one update.

    Raises:
        ConfigurationError: not even one hop fits into the text.
    """
    fitting = min(own_interval(policy), tokens // policy.hop * policy.hop)
    if fitting == 0:
        raise ConfigurationError(
            f"a text of at least {policy.hop} tokens, the least that {policy.name} can judge", f"{tokens} tokens",
            "Give a longer text.",
        )  # fmt: skip
    return fitting


def tokenised(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], tuple[Span, ...]]:
    """Token ids, and where each token stands in the text."""
    if not text.strip():
        raise ConfigurationError("a text to read", "an empty one" if not text else "white space only", "Give a text.")
    if not tokenizer.is_fast:
        raise ModelError(
            "a tokenizer that knows where its tokens stand in the text", type(tokenizer).__name__,
            "Load the fast tokenizer of this model: AutoTokenizer.from_pretrained(..., use_fast=True).",
        )  # fmt: skip
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    return list(encoded["input_ids"]), tuple((start, stop) for start, stop in encoded["offset_mapping"])


def check_context(model: PreTrainedModel, tokens: int) -> None:
    """Raise if the model was not made for so many tokens."""
    longest = context_length(model)
    if longest is not None and tokens > longest:
        raise ConfigurationError(
            f"a text of at most {longest:,} tokens, the context of this model", f"{tokens:,} tokens",
            "Cut the text, or inspect it with a model of longer context.",
        )  # fmt: skip


def by_class(*runs: Forgetting, layer: int | None = None) -> list[ClassShare]:
    """What was kept of each class, the texts of `runs` (say, all samples of a task) taken together."""
    share = torch.cat([run.share(layer)[run.judged] for run in runs])
    nearby = torch.cat([_mean_of_block(run.share(layer), run.update_interval)[run.judged] for run in runs])
    names = [name for run in runs for name, judged in zip(run.classes.names, run.judged, strict=True) if judged]
    rows = []
    for name in CLASSES:
        chosen = torch.tensor([known == name for known in names])
        if bool(chosen.any()):
            kept, mean, expected = (part.mean().item() for part in (share[chosen], share, nearby[chosen]))
            rows.append(ClassShare(name, int(chosen.sum()), kept, _ratio(kept, mean), _ratio(kept, expected)))
    return rows


def _mean_of_block(share: Float[Tensor, " token"], size: int) -> Float[Tensor, " token"]:
    """For each token the mean of those read between the same two updates."""
    return torch.cat([block.mean().expand(len(block)) for block in share.split(size)])


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _shares(positions: list[list[list[int]]], tokens: int) -> Float[Tensor, "layer token"]:
    kept = torch.zeros(len(positions), tokens)
    for layer, heads in enumerate(positions):
        for head in heads:
            kept[layer, head] += 1 / len(heads)
    return kept


def _ranges(numbers: Iterable[int]) -> str:
    """`0-3, 7` for 0, 1, 2, 3, 7."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
