"""What is forgotten: a text is read under a memory, and for each token it is counted which heads still hold it.

    model, tokenizer = namm.models.load_model()
    found = forgetting_of(model, tokenizer, text, "h2o", namm.Budget(fraction=0.25))
    for row in by_class(found):
        row.name, row.tokens, row.share, row.ratio

A memory judges at its updates only. Tokens read since the last one are all still held; they are *not judged* and
take no part in any share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.errors import ConfigurationError
from namm.memory.cache import make_plan
from namm.network import NAMM
from namm.policies import MemoryPolicy, resolve
from namm.report.recording import events_of, to_read
from namm.report.token_classes import CLASSES, Classes, Language, Span, classify
from namm.selection import Selection
from namm.trace import Event, unpacked

FEW = 20  # tokens; the share of a smaller class is mostly chance
COLUMNS = ("class", "tokens", "kept", "ratio", "neighbours")
_NONE = "\u2013"


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
        events: what was held after each update, for the memory page; see `namm.trace`.
    """

    text: str
    spans: tuple[Span, ...]
    classes: Classes
    layers: tuple[int, ...]
    heads: int
    kept: Float[Tensor, "layer token"]
    judged: Bool[Tensor, " token"]
    update_interval: int
    events: list[Event]

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
class _ClassShare:
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


def forgetting_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    memory: NAMM | MemoryPolicy | str | Path,
    selection: Selection | None = None,
    update_interval: int | None = None,
    language: Language | None = None,
    file: str | None = None,
    names: tuple[str, str] | None = None,
) -> Forgetting:
    """Read `text` under a memory and see what is held.

    Args:
        memory: as for `namm.attach`.
        selection: which scored tokens stay; a NAMM decides at its threshold if left out.
        update_interval: tokens between two updates; `fitting_interval` if left out.
        language: whether the text is "prose" or "code"; found by trying to parse it if left out.
        file: the name of the file that the text comes from; see `classify`.
        names: of the model and of the memory, for the page; their own if left out.

    Raises:
        ConfigurationError: the text is empty, too short for one update, or longer than the model's context.
        ModelError: the tokenizer cannot say where its tokens stand in the text.
    """
    policy = resolve(memory)
    ids, spans, interval = to_read(model, tokenizer, text, policy, update_interval)
    if policy.evicts and len(ids) < interval:
        raise ConfigurationError(
            f"at least {interval} tokens, the update interval",
            f"{len(ids)} tokens",
            "Nothing would be forgotten: lower the interval or give a longer text.",
        )
    events = events_of(model, tokenizer, ids, make_plan(policy, selection, interval), names)
    judged = torch.arange(len(ids)) < (len(ids) // interval * interval if policy.evicts else len(ids))
    return Forgetting(
        text,
        spans,
        classify(text, spans, language, file),
        tuple(events[0]["layers"]),
        events[0]["heads"],
        _kept(events),
        judged,
        interval,
        events,
    )


def by_class(*runs: Forgetting, layer: int | None = None) -> list[_ClassShare]:
    """What was kept of each class, the texts of `runs` (say, all samples of a task) taken together."""
    share = torch.cat([run.share(layer)[run.judged] for run in runs])
    nearby = torch.cat([_mean_of_block(run.share(layer), run.update_interval)[run.judged] for run in runs])
    names = [name for run in runs for name, judged in zip(run.classes.names, run.judged, strict=True) if judged]
    rows = []
    for name in CLASSES:
        chosen = torch.tensor([known == name for known in names])
        if bool(chosen.any()):
            kept, mean, expected = (part.mean().item() for part in (share[chosen], share, nearby[chosen]))
            rows.append(_ClassShare(name, int(chosen.sum()), kept, _ratio(kept, mean), _ratio(kept, expected)))
    return rows


def class_table(run: Forgetting, layer: int | None = None) -> list[tuple[str, ...]]:
    """What was kept of each class, as text under `COLUMNS`; a class of few tokens has an asterisk."""
    return [
        (
            row.name + ("*" if row.tokens < FEW else ""),
            f"{row.tokens:,}",
            percent(row.share),
            times(row.ratio),
            times(row.ratio_among_neighbours),
        )
        for row in by_class(run, layer=layer)
    ]


def percent(share: float) -> str:
    return _NONE if math.isnan(share) else f"{share:.0%}" if share >= 0.0995 or share == 0 else f"{share:.1%}"


def times(ratio: float) -> str:
    return _NONE if math.isnan(ratio) else f"{ratio:.2f}"


def _mean_of_block(share: Float[Tensor, " token"], size: int) -> Float[Tensor, " token"]:
    """For each token the mean of those read between the same two updates."""
    return torch.cat([block.mean().expand(len(block)) for block in share.split(size)])


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _kept(events: list[Event]) -> Float[Tensor, "layer token"]:
    """Share of heads that hold each token at the end: what the last update left, and all that was read since."""
    start = events[0]
    held = np.ones((len(start["layers"]), start["heads"], len(start["tokens"])), dtype=bool)
    updates = [event for event in events if event["type"] == "update"]
    if updates:
        last = updates[-1]
        held[..., : last["seen"]] = unpacked(last["held"], *held.shape[:2], last["seen"])
    return torch.from_numpy(held).float().mean(1)


def _ranges(numbers: Iterable[int]) -> str:
    """`0-3, 7` for 0, 1, 2, 3, 7."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
