"""Runs the model: reads a chunk of one prompt, or writes a token of each of several answers. Knows no requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from namm.compat import passing
from namm.memory.batch import together
from namm.memory.cache import MemoryCache
from namm.memory.plan import Plan
from namm.memory.rehearsal import rehearsing
from namm.memory.routing import route, unroute


class Runner:
    """
    Args:
        decoder: the part of the model that has the layers.
    """

    def __init__(self, model: PreTrainedModel, decoder: nn.Module) -> None:
        self._model, self._decoder = model, decoder

    @contextmanager
    def running(self) -> Iterator[None]:
        """What is called in this block, by one thread, reaches the memories."""
        route(self._model.config)
        try:
            with torch.inference_mode(), rehearsing(self._decoder):
                yield
        finally:
            unroute(self._model.config)

    def new_cache(self, plan: Plan) -> MemoryCache:
        return MemoryCache.planned(self._model.config, (plan,))

    def read(self, cache: MemoryCache, ids: list[int], every: bool) -> Float[Tensor, "place vocabulary"]:
        """The logits after these tokens; after `every` one of them, or after the last one."""
        tokens = torch.tensor([ids], device=self._model.device)
        kept = len(ids) if every else 1
        logits: Tensor = self._model(tokens, **passing(self._model, cache), logits_to_keep=kept).logits
        return logits[0]

    def write(self, caches: Sequence[MemoryCache], last: list[int]) -> Float[Tensor, "row vocabulary"]:
        """The logits after one more token for each of these caches, which can join, or of which there is one."""
        model, device = self._model, self._model.device
        tokens = torch.tensor([[token] for token in last], device=device)
        if len(caches) == 1:
            alone: Tensor = model(tokens, **passing(model, caches[0])).logits[:, -1]
            return alone
        places = torch.tensor([[cache.get_seq_length()] for cache in caches], device=device)
        with together(list(caches)) as batch:
            logits: Tensor = model(tokens, **passing(model, batch), position_ids=places).logits[:, -1]
        return logits
