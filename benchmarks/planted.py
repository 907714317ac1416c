"""A planted problem: a memory that can be learned, without a language model and with a known optimum.

A text is a row of tokens of several kinds. Tokens of a kind are attended to in the same rhythm, and a task says which
kind matters: `Item.task` is its name. Score is the share of the mattering tokens that a memory kept, out of those it
had room for: 1 is the optimum. Attention is made up; features, network and selection are the real ones.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache, reduce

import torch
from torch import Tensor

from namm.errors import ConfigurationError, nearest
from namm.evolution import Item, Outcome
from namm.features import feature_set
from namm.network import NAMM, NAMMConfig
from namm.selection import Budget, Selection, Threshold
from namm.spectrogram import Statistics

# queries between two looks at a token of the kind; 0: looked at evenly
KINDS = {"even": 0, "slow": 16, "waltz": 6, "march": 4, "quick": 2}


@dataclass(frozen=True)
class Planted:
    """The planted problem, a `Problem`; samples are made from their index.

    Attributes:
        noise: standard deviation of the logarithm of a token's attention, from token to token.
    """

    noise: float = 0.5

    def statistics(self, item: Item, layout: NAMMConfig) -> Statistics:
        known = layout.feature_set
        parts = [
            Statistics.of(known.read(state[..., :seen]))
            for seen, state in _states(self._text(item), layout.features, layout.update_interval)
        ]
        return reduce(Statistics.merge, parts, Statistics.empty(known.signals))

    def measure(self, item: Item, networks: NAMM) -> list[Outcome]:
        text = self._text(item)
        selection: Selection = Threshold(0.0) if item.budget is None else Budget(fraction=item.budget)
        candidates = len(networks.theta)
        held = torch.empty(candidates, 1, 0, dtype=torch.long)
        start = 0
        for seen, state in _states(text, networks.config.features, networks.config.update_interval):
            new = torch.arange(start, seen).expand(candidates, 1, -1)
            held = _update(networks, selection, torch.cat([held, new], dim=-1), state, seen)
            start = seen
        kept = text.matters[held.clamp(min=0)] & (held >= 0)
        room = int(text.matters.sum())
        if item.budget is not None:
            room = min(room, math.floor(item.budget * item.tokens))
        counts = (held >= 0).sum((1, 2))
        return [
            Outcome(score=min(1.0, int(k) / max(1, room)), nll=1 - int(k) / max(1, room), share=int(n) / item.tokens)
            for k, n in zip(kept.sum((1, 2)), counts, strict=True)
        ]

    def threshold(self, item: Item, network: NAMM) -> float:
        assert item.budget is not None
        *_, (seen, state) = _states(self._text(item), network.config.features, network.config.update_interval)
        age = seen - 1 - torch.arange(seen)
        scores = network.scores(network.features(state[None, None, :, :seen], age[None, None]))
        return float(scores.flatten().quantile(1 - item.budget))

    def _text(self, item: Item) -> _Text:
        if item.task not in KINDS:
            raise ConfigurationError("a kind of token", repr(item.task), nearest(item.task, KINDS))
        return _make(item.split, item.task, item.tokens, item.index, self.noise)


@dataclass(frozen=True, eq=False)
class _Text:
    """Attention `[query, token]` and, for each token, whether it matters."""

    attention: Tensor
    matters: Tensor


@lru_cache(maxsize=4096)
def _make(split: str, task: str, tokens: int, index: int, noise: float) -> _Text:
    seed = random.Random(f"{split}/{index}/{tokens}").getrandbits(63)
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(len(KINDS), (tokens,), generator=generator)
    phase = torch.randint(1 << 16, (tokens,), generator=generator)
    loudness = (torch.randn(tokens, generator=generator) * noise).exp()
    query = torch.arange(tokens)[:, None]
    attention = torch.rand(tokens, tokens, generator=generator) * 0.1
    for kind, period in enumerate(KINDS.values()):
        # the same attention in the mean, so that only the rhythm tells kinds apart
        rhythm = torch.ones(tokens, tokens) if period == 0 else (((query + phase) % period) == 0) * float(period)
        attention += rhythm * (kinds == kind)
    attention = (attention * loudness).tril() / tokens
    return _Text(attention, kinds == list(KINDS).index(task))


def _states(text: _Text, features: str, interval: int) -> list[tuple[int, Tensor]]:
    """At each update the tokens seen and what was observed of every token, `[channel, token]`."""
    known = feature_set(features)
    tokens = len(text.matters)
    state = torch.zeros(1, known.channels, tokens)  # of one head
    before = torch.zeros(1, known.overlap, tokens)
    updates = []
    for start in range(0, tokens, interval):
        seen = min(start + interval, tokens) // known.hop * known.hop
        if seen == start:
            break
        rows = torch.cat([before, text.attention[None, start:seen]], dim=1)
        state = known.observe(state, rows)
        before = rows[:, rows.shape[1] - known.overlap :]
        updates.append((seen, state[0]))
    return updates


def _update(networks: NAMM, selection: Selection, held: Tensor, state: Tensor, seen: int) -> Tensor:
    """The positions `[candidate, 1, slot]` that stay, oldest first, -1 for empty slots at the old end."""
    slots = held.clamp(min=0)
    mine = state[:, slots].permute(1, 2, 0, 3)  # candidate, head, channel, slot
    age = (seen - 1 - held).where(held >= 0, 0)
    kept = selection.select(networks.scores(networks.features(mine, age)), held, seen)
    count = kept.sum(-1)
    order = kept.to(torch.int8).argsort(dim=-1, stable=True)  # forgotten slots first, those that stay in order
    most = int(count.max())
    staying = held.gather(-1, order)[..., held.shape[-1] - most :]
    empty = torch.arange(most).expand_as(staying) < (most - count)[..., None]
    return staying.masked_fill(empty, -1)
