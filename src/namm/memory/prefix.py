"""Everything before the first update, computed once: until then all memories of a text are alike.

A model's hidden states depend on what was forgotten only after something was. So the queries, keys and values of the
tokens before the first update are the same for every policy and budget, and a memory can be started from them by
letting each layer read them again, without the model.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from namm.errors import ModelError
from namm.memory.cache import MemoryCache
from namm.memory.layer import MemoryLayer
from namm.memory.sequence import Plan, Scaling
from namm.policies import KeepAll


@dataclass(frozen=True)
class Read:
    """What one layer's attention was given for the prefix: `[1, head, token, dim]` each."""

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: Scaling


class _Recorder(MemoryLayer):
    """Keeps everything, and remembers what attention was asked."""

    read: Read | None = None

    def attend(self, query: Tensor, scaling: Scaling, mask: Tensor | None) -> Tensor:
        assert self._pending is not None
        keys, values = self._pending
        self.read = Read(query, keys.view_as(keys), values, scaling)  # a view, which does not know this layer
        return super().attend(query, scaling, mask)


@dataclass(frozen=True)
class Footprint:
    """Bytes of a memory, over all layers that it manages, between two hops.

    Attributes:
        token: of one more token in every head, its observed state included.
        constant: of the queries that are always held.
        full: of one more token in a cache that holds keys and values only.
    """

    token: int
    constant: int
    full: int


@dataclass(frozen=True)
class Prefix:
    """The first tokens of a text as every layer saw them.

    Attributes:
        tokens: how many.
        reads: for each layer what its attention was given, or the layer itself where it has a cache of its own kind.
    """

    config: PreTrainedConfig
    tokens: int
    reads: tuple[Any, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel, ids: Tensor) -> Prefix:
        """Read `ids` `[1, token]` with the model, forgetting nothing."""
        cache = MemoryCache.planned(model.config, (Plan(KeepAll(), None, 1),), _Recorder)
        model(ids, past_key_values=cache, logits_to_keep=1)
        reads = []
        for layer in cache.layers:
            if isinstance(layer, _Recorder):
                layer.check_served()
                assert layer.read is not None
            reads.append(layer.read if isinstance(layer, _Recorder) else layer)
        return cls(model.config, ids.shape[1], tuple(reads))

    def footprint(self, plan: Plan) -> Footprint:
        """What a memory with this plan costs in bytes."""
        token = constant = full = 0
        for read in self.reads:
            if not isinstance(read, Read):
                continue
            policy, dtype = plan.policy, read.key.dtype
            kv_heads = read.key.shape[1]
            pair = (read.key.shape[-1] + read.value.shape[-1]) * dtype.itemsize
            state = policy.channels * plan.state_dtype(dtype).itemsize
            full += kv_heads * pair
            token += kv_heads * (pair + state + torch.int32.itemsize)  # with its position
            if policy.channels:  # the queries between two hops, and their log-sum-exp
                query = read.query.shape[-1] * dtype.itemsize + torch.float32.itemsize
                constant += read.query.shape[1] * policy.overlap * query
        return Footprint(token, constant, full)

    @torch.no_grad()
    def start(self, plans: tuple[Plan, ...]) -> MemoryCache:
        """A memory that has read the prefix, with a row for each plan. An update that falls due at its end is done.

        Raises:
            ModelError: an update would have been due before the end of the prefix.
        """
        early = [plan for plan in plans if (plan.next_update(0) or self.tokens) < self.tokens]
        if early:
            raise ModelError(
                f"plans without an update before token {self.tokens}", f"one at {early[0].next_update(0)}",
                "Shorten the prefix to the first update.",
            )  # fmt: skip
        cache = MemoryCache.planned(self.config, plans)
        for i, (layer, read) in enumerate(zip(cache.layers, self.reads, strict=True)):
            if isinstance(layer, MemoryLayer):
                key, value, query = (t.expand(len(plans), -1, -1, -1) for t in (read.key, read.value, read.query))
                layer.update(key, value)
                layer.attend(query, read.scaling, None)
            else:
                cache.layers[i] = _repeated(read, len(plans))
        return cache


def _repeated(layer: Any, rows: int) -> Any:
    """A copy, for `rows` rows, of a layer with a cache of its own kind."""
    twin = deepcopy(layer)
    if rows > 1:
        twin.batch_repeat_interleave(rows)
    return twin
