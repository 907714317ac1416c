"""Several caches of one row, read on together as the rows of one batch.

Conversations that share a model come and go one by one, so each has a cache of its own. For a call that gives each the
same number of new tokens, their sequences are lent to one cache; positions differ from row to row and must be given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

import torch
from torch import Tensor

from namm.errors import ModelError
from namm.memory.cache import MemoryCache
from namm.memory.layer import MemoryLayer
from namm.memory.rehearsal import left_padded


def can_join(cache: MemoryCache) -> bool:
    """Whether this cache can be a row: one sequence, tokens read already, every layer a memory."""
    return all(
        isinstance(layer, MemoryLayer) and len(layer.sequences) == 1 and layer.all_shown for layer in cache.layers
    )


@contextmanager
def together(caches: list[MemoryCache]) -> Iterator[MemoryCache]:
    """One cache with a row for each of `caches`; after the block each has read its row of what was given.

    The call inside gives every row equally many tokens, no padding, and `position_ids`, which are the row's own. If it
    raises, the caches are not to be used any further.

    Raises:
        ModelError: a cache that cannot be a row, see `can_join`.
    """
    if not all(map(can_join, caches)):
        raise ModelError(
            "caches of one row that have read something, without layers of another kind", "another one",
            "Read these alone.",
        )  # fmt: skip
    layers = [_joined([cache.layers[i] for cache in caches]) for i in range(len(caches[0].layers))]
    batch = MemoryCache.lent(layers)
    before = [layer.columns for layer in layers]
    yield batch
    for i, layer in enumerate(layers):
        for row, cache in enumerate(caches):
            cache.layers[i].columns += layer.columns - before[i]
            cache.layers[i].heard = _row(layer.heard, row)


def _joined(layers: list[MemoryLayer]) -> MemoryLayer:
    """A layer with the sequences of all, which are lent and not copied."""
    joined = copy(layers[0])
    joined.plans = tuple(layer.plans[0] for layer in layers)
    joined.sequences = [layer.sequences[0] for layer in layers]
    joined.columns = max(layer.columns for layer in layers)
    joined.heard = _heard([layer.heard for layer in layers])
    return joined


def _heard(parts: list[tuple[Tensor, Tensor] | None]) -> tuple[Tensor, Tensor] | None:
    """Tokens that wait for their rehearsal, left-padded, and which of them are real."""
    known = next((part for part in parts if part is not None), None)
    if known is None:
        return None
    rows = [known[0][0, :0] if part is None else part[0][0][part[1][0]] for part in parts]
    return left_padded(rows)


def _row(heard: tuple[Tensor, Tensor] | None, row: int) -> tuple[Tensor, Tensor] | None:
    if heard is None:
        return None
    tokens = heard[0][row][heard[1][row]]
    return tokens[None], torch.ones(1, len(tokens), dtype=torch.bool, device=tokens.device)
