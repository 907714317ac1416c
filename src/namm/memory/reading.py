"""Reading a text under memories, and asking about it: the one way in which all of `namm` does.

    cache = MemoryCache.planned(model.config, plans)     # several memories side by side, a row for each plan
    read(model, cache, text)
    logits = ask(model, cache, question)                 # of a fork: the memory is as it was

What memories share is read once: begin with `prefix.start(plans)` in place of a new cache, and read the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from namm.compat import passing
from namm.memory.attach import find_decoder
from namm.memory.cache import MemoryCache
from namm.memory.layer import layers_of
from namm.memory.rehearsal import rehearsing


@torch.no_grad()
def read(
    model: PreTrainedModel, cache: Cache, ids: Sequence[int] | Tensor, kept: int = 1, **images: Any
) -> Float[Tensor, "row kept vocabulary"]:
    """Let every row of a cache read on; returns the logits of the last `kept` tokens.

    Args:
        cache: a memory, or one of transformers' own.
        ids: the same for all rows.
        images: what the model takes beside the ids, such as `pixel_values`.

    Raises:
        ModelError: a layer was not asked.
    """
    ours = layers_of(cache)
    rows = max((len(layer.sequences) or len(layer.plans) for layer in ours), default=1)
    tokens = torch.as_tensor(ids, device=model.device).expand(rows, -1)
    with rehearsing(find_decoder(model)):
        out = model(tokens, **passing(model, cache), use_cache=True, logits_to_keep=kept, **images)
    for layer in ours:
        layer.check_served()
    logits: Tensor = out.logits[:, -kept:]
    return logits


def ask(
    model: PreTrainedModel, cache: MemoryCache, ids: Sequence[int], kept: int = 1
) -> Float[Tensor, "row kept vocabulary"]:
    """The same of a copy: each question by itself, from the same memory."""
    return read(model, cache.fork(), ids, kept)
