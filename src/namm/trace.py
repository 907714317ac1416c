"""What a memory held after each update, as events for the memory page: recorded from a text, or one by one as it runs.

    recorder = Recorder()
    events = [start_event(None, shape_of(model.config, model.dtype), ..., tokens=pieces(tokenizer, ids))]
    ...                                     # after each forward call of the model:
    events.append(recorder.after(cache))

An event is a JSON object with a `type`:

    start   model, memory, rule, layers, heads, bytes_per_token, interval, tokens, continues, held
    read    seen, bytes_held, bytes_full            tokens were read, none was forgotten
    update  seen, bytes_held, bytes_full, held      some were
    token   tokens                                  what the model wrote
    end     bytes_held, bytes_full

`held` is base64 of bits [layer, kv_head, token], each head's row filled up to whole bytes, the first token in the
highest bit: which of the `seen` tokens that head holds. Eviction is permanent, so an update tells all that went since
the one before.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from transformers import PreTrainedConfig

from namm.errors import ConfigurationError
from namm.memory.cache import MemoryCache, memory_layers
from namm.memory.layer import MemoryLayer, layers_of
from namm.memory.plan import Plan
from namm.policies import resolve
from namm.selection import Budget, Threshold

Event = dict[str, Any]
Held = Bool[np.ndarray, "layer kv_head token"]


@dataclass(frozen=True)
class Shape:
    """The part of a model's cache that a memory rules.

    Attributes:
        layers: index in the model of each layer with a memory.
        heads: kv heads of a layer.
        bytes_per_token: keys and values of one token in a full cache, over these layers and heads.
    """

    layers: tuple[int, ...]
    heads: int
    bytes_per_token: int


def shape_of(config: PreTrainedConfig, dtype: torch.dtype) -> Shape:
    """The shape of the memory of models with this config, whose cache is of that dtype.

    Raises:
        ModelError: the model has no full-attention layer.
    """
    config = config.get_text_config(decoder=True)
    plan = Plan(resolve("full"), None, 1)
    layers = tuple(layer.index for layer in memory_layers(config, (plan,)) if isinstance(layer, MemoryLayer))
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(layers, heads, 2 * len(layers) * heads * width * dtype.itemsize)


def rule_of(plan: Plan) -> str:
    """How much a memory keeps, in words that follow its name: "keeps 25 % of the tokens read"."""
    selection = plan.selection
    if not plan.policy.evicts:
        return "keeps every token"
    if isinstance(selection, Budget):
        if selection.tokens is not None:
            return f"keeps {selection.tokens:,} tokens a head"
        return f"keeps {100 * (selection.fraction or 0):.3g} % of the tokens read"
    if isinstance(selection, Threshold):
        return f"keeps what it scores at {selection.value:g} or above"
    return f"keeps what {selection!r} selects"


# -- events ------------------------------------------------------------------------------------------------------------


def start_event(
    cache: MemoryCache | None,
    shape: Shape,
    *,
    model: str,
    memory: str,
    rule: str,
    interval: int,
    tokens: Iterable[str],
) -> Event:
    """The first event: who reads, under which rule, and the text known so far.

    Args:
        cache: what is continued, of one row; None or an empty cache for a new text.
        rule: see `rule_of`.
        interval: tokens between two updates.
        tokens: the text of each token, those that `cache` has read and those that it will read now; see `pieces`.
    """
    continues = 0 if cache is None else cache.get_seq_length()
    return {
        "type": "start", "model": model, "memory": memory, "rule": rule, "layers": list(shape.layers),
        "heads": shape.heads, "bytes_per_token": shape.bytes_per_token, "interval": interval, "tokens": list(tokens),
        "continues": continues, "held": packed(held_by(cache)) if cache is not None and continues else None,
    }  # fmt: skip


class Recorder:
    """Tells what became of a cache of one row since the last call.

    Args:
        cache: what is continued; None or an empty cache for a new text.
    """

    def __init__(self, cache: MemoryCache | None = None) -> None:
        self._updates = 0 if cache is None else _updates(cache)

    def after(self, cache: MemoryCache) -> Event:
        """An `update` event if a layer forgot since the last call, else a `read` event."""
        report, updates = cache.memory(), _updates(cache)
        event: Event = {
            "type": "read", "seen": report.tokens_seen, "bytes_held": report.bytes_held,
            "bytes_full": report.bytes_full,
        }  # fmt: skip
        if updates != self._updates:
            self._updates = updates
            event |= {"type": "update", "held": packed(held_by(cache))}
        return event


def token_event(tokens: Iterable[str]) -> Event:
    """The text of tokens that the model wrote."""
    return {"type": "token", "tokens": list(tokens)}


def end_event(cache: MemoryCache) -> Event:
    """The last event of an answer."""
    report = cache.memory()
    return {"type": "end", "bytes_held": report.bytes_held, "bytes_full": report.bytes_full}


def _updates(cache: MemoryCache) -> int:
    """Updates of all layers together; the layers forget at the same tokens, but not all need have one yet."""
    return sum(sequence.updates for layer in layers_of(cache) for sequence in layer.sequences)


# -- which head holds which token --------------------------------------------------------------------------------------


def held_by(cache: MemoryCache) -> Held:
    """Which of the tokens read each head still holds; `cache` has read something, in one row.

    Raises:
        ConfigurationError: the cache holds several rows.
    """
    rows = [cache.kept_positions(layer.index) for layer in layers_of(cache)]
    if len(rows[0]) != 1:
        raise ConfigurationError("a cache of one row", f"{len(rows[0])} rows", "Record each text alone.")
    held = np.zeros((len(rows), len(rows[0][0]), cache.get_seq_length()), dtype=bool)
    for layer, (heads,) in enumerate(rows):
        for head, positions in enumerate(heads):
            held[layer, head, positions] = True
    return held


def packed(held: Held) -> str:
    """`held` as an event has it."""
    return b64encode(np.packbits(held, axis=-1).tobytes()).decode("ascii")


def unpacked(held: str, layers: int, heads: int, seen: int) -> Held:
    """`held` of an event, read again."""
    rows = np.frombuffer(b64decode(held), dtype=np.uint8).reshape(layers, heads, -1)
    return np.unpackbits(rows, axis=-1, count=seen).astype(bool)
