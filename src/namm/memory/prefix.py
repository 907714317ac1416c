"""Everything before the first update, computed once: until then all memories of a text are alike.

A model's hidden states depend on what was forgotten only after something was. So the queries, keys and values of the
tokens before the first update are the same for every policy and budget, and a memory can be started from them by
letting each layer read them again, without the model.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from namm.errors import ModelError
from namm.memory import attending, steps
from namm.memory.asking import ask_rest
from namm.memory.attach import find_decoder
from namm.memory.cache import MemoryCache
from namm.memory.layer import MemoryLayer
from namm.memory.ledger import Footprint, footprint, storage_bytes
from namm.memory.plan import Plan, Probe, Read
from namm.memory.reading import read
from namm.memory.rehearsal import rehearse, rehearsed
from namm.memory.rotation import asks_moved, rotation_of
from namm.memory.sequence import Meter, Rows, Sequence
from namm.policies import KeepAll, MemoryPolicy
from namm.policies.base import Rehearsal


@dataclass(frozen=True)
class Prefix:
    """The first tokens of a text as every layer saw them.

    Attributes:
        tokens: how many.
        reads: for each layer what its attention was given, or the layer itself where it has a cache of its own kind.
        rehearsed: the same for rehearsals of these tokens.
    """

    config: PreTrainedConfig
    tokens: int
    reads: tuple[Any, ...]
    rehearsed: dict[Rehearsal, tuple[Any, ...]] = field(default_factory=dict)
    _bases: dict[Hashable, dict[int, Sequence]] = field(default_factory=dict, repr=False)

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel, ids: Tensor, rehearsals: Iterable[Rehearsal] = (), **images: Any) -> Prefix:
        """Read `ids` `[1, token]` with the model, forgetting nothing, and rehearse them in each of these ways.

        Args:
            images: what the model takes beside the ids, such as `pixel_values`; these cannot be rehearsed here.
        """
        given: dict[int, Read] = {}  # to each layer, the last time
        cache = MemoryCache.planned(model.config, (Plan(KeepAll(), None, 1, probe=Probe(given.__setitem__)),))

        def taken() -> tuple[Any, ...]:
            cache.memory()  # raises if a layer was not asked
            return tuple(given.get(i, layer) for i, layer in enumerate(cache.layers))

        read(model, cache, ids, **images)
        prefix, decoder = cls(model.config, ids.shape[1], taken()), find_decoder(model)
        for rehearsal in rehearsals:
            again = rehearsed(rehearsal, ids[0])[None]
            everything = torch.ones_like(again, dtype=torch.bool)
            rehearse(decoder, decoder.forward, cache, (True,), again, everything)
            prefix.rehearsed[rehearsal] = taken()
        return prefix

    @torch.no_grad()
    def settled(self, policy: MemoryPolicy) -> Prefix:
        """Only what memories need that observe as `policy` does, which is a fraction of the bytes."""
        bases = {i: self._observed(policy, i) for i, read in enumerate(self.reads) if isinstance(read, Read)}
        return replace(self.without_tokens(), _bases={policy.observer: bases})

    def without_tokens(self) -> Prefix:
        """Only the shapes, which tell what memories cost."""
        reads = tuple(read.without_tokens() if isinstance(read, Read) else read for read in self.reads)
        return Prefix(self.config, self.tokens, reads)

    def nbytes(self) -> int:
        """Bytes of what was read and observed."""
        reads = [read for layers in (self.reads, *self.rehearsed.values()) for read in layers if isinstance(read, Read)]
        tensors = [tensor for read in reads for tensor in (read.query, read.key, read.value)]
        sequences = [sequence for bases in self._bases.values() for sequence in bases.values()]
        return storage_bytes(tensors) + sum(sequence.nbytes() for sequence in sequences)

    def footprint(self, plan: Plan) -> Footprint:
        """What a memory with this plan costs in bytes."""
        return footprint(plan, (read for read in self.reads if isinstance(read, Read)))

    @torch.no_grad()
    def start(self, plans: tuple[Plan, ...]) -> MemoryCache:
        """A memory that has read the prefix, with a row for each plan. An update that falls due at its end is done.

        Rows that observe alike observe once. For rows that rehearse, the prefix must have been rehearsed, and end where
        their first update falls due.

        Raises:
            ModelError: an update would have been due before the end of the prefix, or after it for rows that rehearse.
        """
        for plan in plans:
            first = plan.next_update(0)
            if first is not None and (first < self.tokens or (first > self.tokens and plan.policy.rehearsal)):
                raise ModelError(
                    f"plans whose first update is not before token {self.tokens}, and at it if they rehearse",
                    f"one at {first}", "Let the prefix end at the first update.",
                )  # fmt: skip
        cache = MemoryCache.planned(self.config, plans)
        for i, layer in enumerate(cache.layers):
            if not isinstance(layer, MemoryLayer):
                cache.layers[i] = _repeated(self.reads[i], len(plans))
                continue
            bases = {plan.policy.observer: plan.policy for plan in plans}
            layer.follow({observer: self._observed(policy, i) for observer, policy in bases.items()})
        return cache

    def _observed(self, policy: MemoryPolicy, index: int) -> Sequence:
        """Layer `index` after the prefix and its rehearsal, with an update due; kept for those that observe alike."""
        if policy.observer not in self._bases:
            self._bases.clear()  # one observer at a time: this is as large as the prefix itself
            self._bases[policy.observer] = {}
        bases = self._bases[policy.observer]
        if index not in bases:
            read = self.reads[index]
            bases[index] = Sequence(Plan(policy, None, self.tokens + 1), 0, index, Meter())  # the update is others'
            scaling = read.scaling
            config = self.config.get_text_config(decoder=True)
            if policy.asks_in_place and asks_moved(policy.asks_in_place, config):
                scaling = replace(scaling, rotation=rotation_of(config, index))
            steps.read([bases[index]], read.query, read.key, read.value, scaling)
            ask_rest(Rows([bases[index]]))
            if policy.rehearsal is not None and policy.reads_again:
                again = self.rehearsed[policy.rehearsal][index]
                query = again.query[0].unflatten(0, (again.key.shape[1], -1))
                attending.rehearse(Rows([bases[index]]), query, again.key[0], again.value[0], again.scaling)
        return bases[index]


def _repeated(layer: Any, rows: int) -> Any:
    """A copy, for `rows` rows, of a layer with a cache of its own kind."""
    twin = deepcopy(layer)
    if rows > 1:
        twin.batch_repeat_interleave(rows)
    return twin
