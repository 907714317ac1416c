"""The oracle: a memory that knows how much attention each token will receive from everything read later.

No policy can know that; it is the ceiling to aim at for whatever reads attention. A first pass with the full cache
records, for each layer and kv head, the largest attention every token receives after each update; a second pass keeps
the tokens with the most.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from namm import kernels
from namm.memory.cache import MemoryCache
from namm.memory.plan import Plan, Probe, Read, Scaling
from namm.memory.reading import read
from namm.policies import KeepAll, MemoryPolicy, View

Future = tuple[Float[Tensor, "kv_head token"], ...]
"""For each update, over the tokens read before it, the largest attention that comes after it."""


@dataclass(frozen=True, repr=False, eq=False)
class _Oracle(MemoryPolicy):
    """Keep the tokens with the largest group-mean attention from any one later query.

    Attributes:
        updates: tokens read at each update.
        future: by layer.
    """

    name = "oracle"
    updates: tuple[int, ...]
    future: dict[int, Future]

    def score(self, view: View) -> Tensor:
        later = self.future[view.layer][self.updates.index(view.seen)]
        return later[view.heads].gather(1, view.positions[0].long().clamp(min=0))[None]


@torch.no_grad()
def foresee(model: PreTrainedModel, ids: Tensor, updates: tuple[int, ...]) -> _Oracle:
    """Read a whole sample, gold answer included, with the full cache, and note what is attended to.

    Args:
        ids: `[1, token]`.
        updates: tokens read at each update, ascending.
    """
    future: dict[int, Future] = {}

    def note(layer: int, given: Read) -> None:
        future[layer] = later_attention(given.query[0], given.key[0], given.value[0], given.scaling, updates)

    read(model, MemoryCache.planned(model.config, (Plan(KeepAll(), None, 1, probe=Probe(note)),)), ids)
    return _Oracle(updates, future)


def later_attention(
    query: Float[Tensor, "head token dim"],
    key: Float[Tensor, "kv_head token dim"],
    value: Float[Tensor, "kv_head token value_dim"],
    scaling: Scaling,
    updates: tuple[int, ...],
) -> Future:
    """For each update the largest group-mean attention a token receives from any query after it."""
    heads, tokens, _ = key.shape
    between = torch.zeros(len(updates) + 1, heads, tokens, device=key.device)  # maximum within each stretch of queries
    asked = 0

    def note(attention: Float[Tensor, "kv_head query slot"]) -> None:
        nonlocal asked
        stop = asked + attention.shape[1]
        for a, b in pairwise([asked, *(u for u in updates if asked < u < stop), stop]):
            most = between[bisect_right(updates, a), :, : attention.shape[2]]
            torch.maximum(most, attention[:, a - asked : b - asked].amax(1), out=most)
        asked = stop

    grouped = query.unflatten(0, (heads, -1))
    kernels.attend_and_observe(grouped, key, value, scaling.scale, softcap=scaling.softcap, observe=note)
    after = between.flip(0).cummax(0).values.flip(0)[1:]
    return tuple(most[:, :update].clone() for most, update in zip(after, updates, strict=True))
