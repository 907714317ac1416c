"""Whether a model reads a text in pieces as it reads it whole.

Full attention does, by what a cache is. Layers with a state of another kind should, and some models of transformers
(Jamba, Bamba) do not: given several tokens, they begin their state anew. So such models are tried once.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from namm.compat import passing
from namm.errors import ModelError

_TOKENS, _FIRST = 24, 16  # of the trial, and of its first piece

_Trial = Callable[[PreTrainedModel], float]
_lock = threading.Lock()
_tried: weakref.WeakKeyDictionary[PreTrainedModel, dict[_Trial, float]] = weakref.WeakKeyDictionary()


@torch.no_grad()
def tried(decoder: PreTrainedModel, trial: _Trial) -> float:
    """What a trial of a model in evaluation mode gives, which is made once."""
    with _lock:
        known = _tried.setdefault(decoder, {})
        if trial not in known:
            training = decoder.training
            decoder.eval()
            try:
                known[trial] = trial(decoder)
            finally:
                decoder.train(training)
        return known[trial]


def check_pieces(decoder: PreTrainedModel, wanted: str) -> None:
    """Raise unless the decoder reads a text in pieces as it reads it whole, which is what is `wanted`.

    Raises:
        ModelError: it does not.
    """
    rounding = 3e-6 if decoder.dtype in (torch.float32, torch.float64) else 3e-2  # hybrids that are right: under 3e-7
    if (off := _difference(decoder)) > rounding:
        raise ModelError(
            f"a model that reads a text in pieces as it reads it whole, for {wanted}",
            f"{type(decoder).__name__}, whose hidden states are then off by {off:.1g} of their norm",
            "Read each text in one call, with a memory that reads once; transformers has to mend this model.",
        )  # fmt: skip


def _difference(decoder: PreTrainedModel) -> float:
    """How far apart the hidden states of the two ways are, as a part of their norm; computed once for a model."""
    if all(type(layer) is DynamicLayer for layer in DynamicCache(config=decoder.config).layers):
        return 0.0
    return tried(decoder, _try)


def trial_ids(decoder: PreTrainedModel, tokens: int) -> torch.Tensor:
    """Ids of a short text for a model, `[1, token]`."""
    embedding = decoder.get_input_embeddings()
    return torch.arange(1, tokens + 1, device=embedding.weight.device)[None] % embedding.num_embeddings


def _try(decoder: PreTrainedModel) -> float:
    ids = trial_ids(decoder, _TOKENS)
    whole, pieces = (_read(decoder, ids.split(cut, dim=1)) for cut in (_TOKENS, _FIRST))
    return float((whole - pieces).norm() / whole.norm())


def _read(decoder: PreTrainedModel, pieces: Iterable[torch.Tensor]) -> torch.Tensor:
    """Hidden states `[token, dim]`, by the decoder's own forward: hooks that hand over a memory are passed by."""
    cache = DynamicCache(config=decoder.config)
    states = [
        decoder.forward(input_ids=piece, use_cache=True, **passing(decoder, cache)).last_hidden_state
        for piece in pieces
    ]
    return torch.cat(states, dim=1)[0].float()
