"""Rehearsal: before each update the model reads the tokens since the last one again, so that a policy sees what the
text asks of its own past.

The decoder is called piece by piece, each piece ending where an update falls due. There the block's tokens are given to
it once more, at the positions that follow; every memory layer answers them from what it holds, lets its policy observe
that, keeps none of them, and then updates. Layers with a cache of another kind are put back as they were.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial, wraps
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from namm.compat import cache_given, passing, untraced
from namm.errors import ModelError
from namm.memory.layer import MemoryLayer, layers_of
from namm.memory.plan import Plan
from namm.memory.seam import replaced
from namm.policies.base import Rehearsal

_PER_TOKEN = ("input_ids", "inputs_embeds", "position_ids", "cache_position", "token_type_ids")


@contextmanager
def rehearsing(decoder: PreTrainedModel) -> Iterator[None]:
    """Inside the block `decoder` rehearses for memories whose policy asks for it, other calls are as before.

    For memories whose layers decide together it is called piece by piece, as then, and nothing is read again.
    """
    own = decoder.forward
    with replaced(decoder, "forward", wraps(own)(partial(_forward, decoder, own))):  # with the signature of its own
        yield


def _rehearsal_of(layer: MemoryLayer) -> Rehearsal | None:
    """What the model reads again for the rows of a memory; None if no row wants that.

    Raises:
        ModelError: rows that rehearse in different ways.
    """
    wanted = {plan.policy.rehearsal for plan in layer.plans if plan.policy.evicts and plan.policy.reads_again}
    if len(wanted) > 1:
        raise ModelError("rows that rehearse in one way", sorted(map(str, wanted)), "Read them one after another.")
    return wanted.pop() if wanted else None


@untraced
def _forward(decoder: PreTrainedModel, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    kwargs = dict(zip(inspect.signature(own).parameters, args, strict=False)) | kwargs
    cache = cache_given(decoder, kwargs)
    layer = next(iter(layers_of(cache)), None)
    if cache is None or layer is None or not any(plan.in_pieces for plan in layer.plans):
        return own(**kwargs)
    rehearsal = _rehearsal_of(layer)
    name = "inputs_embeds" if kwargs.get("inputs_embeds") is not None else "input_ids"
    tokens, mask = kwargs[name], kwargs.get("attention_mask")
    if rehearsal is None and len(_ends(layer, _real(tokens, mask))) == 1:
        return own(**kwargs)
    _check(kwargs, tokens, mask)
    real = _real(tokens, mask)
    past, start, states = cache.get_seq_length(), 0, []
    for stop in _ends(layer, real):
        piece = kwargs | {key: kwargs[key][..., start:stop] for key in _PER_TOKEN[2:] if kwargs.get(key) is not None}
        piece |= {name: tokens[:, start:stop], "attention_mask": None if mask is None else mask[:, : past + stop]}
        out = own(**piece | {"return_dict": True})
        states.append(out.last_hidden_state)
        if rehearsal is not None:
            _hear(layer, tokens[:, start:stop], real[:, start:stop], decoder)
        due = tuple(s.due and s.plan.policy.reads_again for s in layer.sequences)
        if rehearsal is not None and any(due):
            last = kwargs.get("position_ids")
            still = last is not None and last.shape[-1] > 1 and bool((last == last[..., :1]).all())
            block = _block(layer, rehearsal, due)
            if not still:
                _check_positions(decoder, past + stop + block[0].shape[1])
            rehearse(
                decoder, own, cache, due, *block,
                None if mask is None else mask[:, : past + stop], None if last is None else last[..., stop - 1 : stop],
                still,
            )  # fmt: skip
            _drop_old(layer)
        start = stop
    out.last_hidden_state = torch.cat(states, dim=1)  # of what the model gives, the rest is about the cache
    return out if kwargs.get("return_dict") is not False else out.to_tuple()


def rehearse(
    decoder: PreTrainedModel,
    forward: Callable[..., Any],
    cache: Cache,
    due: tuple[bool, ...],
    tokens: Tensor,
    real: Bool[Tensor, "batch token"],
    mask: Tensor | None = None,
    last: Tensor | None = None,
    still: bool = False,
) -> None:
    """Read `tokens` as a rehearsal: the rows that are `due` observe and update, and nobody remembers them.

    Args:
        forward: of the decoder, its own.
        tokens: ids `[batch, token]` or embeddings `[batch, token, dim]`, left-padded.
        real: which of them are no padding.
        mask: of the columns read so far, if there is one.
        last: position of the token before, `[.., batch, 1]`; if left out, columns count as the model counts them.
        still: whether positions do not count on, as in a Decision Transformer, whose embeddings hold the time.
    """
    layers, ours = list(cache.layers), layers_of(cache)
    cache.layers = [layer if isinstance(layer, MemoryLayer) else deepcopy(layer) for layer in layers]
    if mask is not None or not bool(real.all()):
        before = mask if mask is not None else real.new_ones(len(real), cache.get_seq_length())
        mask = torch.cat([before.bool(), real], dim=1)
    more: dict[str, Any] = {}
    if last is not None:
        more["position_ids"] = last + real.cumsum(1).clamp(min=1) * (not still)
    for layer in ours:
        layer.rehearsing = due
    try:
        name = "input_ids" if tokens.ndim == 2 else "inputs_embeds"
        forward(**{name: tokens}, attention_mask=mask, use_cache=True, **passing(decoder, cache), **more)
    finally:
        cache.layers = layers
        for layer in ours:
            layer.rehearsing = None


def _real(tokens: Tensor, mask: Tensor | None) -> Bool[Tensor, "batch token"]:
    """Which of these tokens are no padding; what else a mask may be is not looked at here."""
    if mask is None or mask.ndim != 2:
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return mask[:, mask.shape[1] - tokens.shape[1] :].bool()


def rehearsed(rehearsal: Rehearsal, block: Tensor) -> Tensor:
    """What is read again of one block, given as ids `[token]` or embeddings `[token, dim]`."""
    return block[len(block) - math.ceil(rehearsal.share * len(block)) :][:: rehearsal.every]


def _check(kwargs: dict[str, Any], tokens: Tensor, mask: Any) -> None:
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
        raise ModelError(
            "an attention mask of shape [batch, tokens seen] for a memory that reads in pieces",
            list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__,
            'Use a memory that reads once and a budget with per="layer" for this model.',
        )
    strange = [name for name, value in kwargs.items() if isinstance(value, Tensor) and name not in _PER_TOKEN]
    asked = [name for name in ("output_hidden_states", "output_attentions", "output_router_logits") if kwargs.get(name)]
    if unknown := sorted(set(strange) - {"attention_mask"}) + asked:
        raise ModelError(
            "ids, embeddings, positions and a mask for a memory that reads in pieces", ", ".join(unknown),
            'Use a memory that reads once and a budget with per="layer" here.',
        )  # fmt: skip


def _check_positions(decoder: PreTrainedModel, needed: int) -> None:
    """Raise if the model has learned fewer positions than text and rehearsal take; rotated ones go on for ever."""
    for name, module in decoder.named_modules():
        learned = isinstance(module, torch.nn.Embedding) and name.rpartition(".")[2] in ("wpe", "embed_positions")
        if learned and needed > module.num_embeddings:
            raise ModelError(
                f"a text that leaves room for a rehearsal within {module.num_embeddings} learned positions",
                f"{needed} tokens with it", "Use a memory that reads once, or shorter texts.",
            )  # fmt: skip


def _ends(layer: MemoryLayer, real: Bool[Tensor, "batch token"]) -> list[int]:
    """Where the pieces of a call end: after each column in which a row reaches an update that others have a say in."""
    rows, columns = real.shape
    ends = {columns}
    plans = layer.plans * rows if len(layer.plans) == 1 else layer.plans
    for row, plan in enumerate(plans):
        if not plan.in_pieces:
            continue
        seen = layer.sequences[row].seen if layer.sequences else 0
        read = (real[row].cumsum(0) + seen).tolist()
        due = plan.next_update(seen)
        while due is not None and due <= read[-1]:
            ends.add(read.index(due) + 1)
            due = plan.next_update(due)
    return sorted(ends)


def _hear(layer: MemoryLayer, tokens: Tensor, real: Tensor, decoder: PreTrainedModel) -> None:
    """Keep the tokens of the block that is being read, and of no other; as embeddings if any came as such."""
    if layer.heard is not None:
        parts = [layer.heard[0], tokens]
        if parts[0].ndim != parts[1].ndim:
            embed = decoder.get_input_embeddings()
            parts = [embed(part) if part.ndim == 2 else part for part in parts]
        tokens, real = torch.cat(parts, dim=1), torch.cat([layer.heard[1], real], dim=1)
    layer.heard = (tokens, real)
    _drop_old(layer)


def _drop_old(layer: MemoryLayer) -> None:
    """Let go of the tokens of blocks that were decided upon."""
    assert layer.heard is not None
    tokens, real = layer.heard
    first = tokens.shape[1]
    for row, sequence in enumerate(layer.sequences):
        if count := unread(sequence.plan, sequence.seen, sequence.updates):
            first = min(first, int(real[row].nonzero()[-count]))
    layer.heard = (tokens[:, first:].clone(), real[:, first:].clone())


def unread(plan: Plan, seen: int, updates: int) -> int:
    """Real tokens that wait for their rehearsal: those since the last update that was made."""
    if not plan.policy.reads_again or (plan.next_update(seen) is None and updates == plan.updates(seen)):
        return 0
    end = updates * plan.update_interval
    return seen - (end if plan.last is None else min(end, plan.last))


def _block(layer: MemoryLayer, rehearsal: Rehearsal, due: tuple[bool, ...]) -> tuple[Tensor, Tensor]:
    """What the rows that are due read again, left-padded, and which of it is real."""
    assert layer.heard is not None
    tokens, real = layer.heard
    blocks = [
        rehearsed(rehearsal, tokens[row][real[row]][-unread(sequence.plan, sequence.seen, sequence.updates) :])
        if due[row]
        else tokens[row, :0]
        for row, sequence in enumerate(layer.sequences)
    ]
    padded, there = left_padded(blocks)
    there[:, -1] = True  # rows that are not due ask something too, and are not answered
    return padded, there


def left_padded(rows: list[Tensor]) -> tuple[Tensor, Bool[Tensor, "batch token"]]:
    """Ids or embeddings of several rows in one tensor, and which of it is real."""
    longest = max(map(len, rows))
    padded = rows[0].new_zeros(len(rows), longest, *rows[0].shape[1:])
    real = torch.zeros(len(rows), longest, dtype=torch.bool, device=padded.device)
    for row, tokens in enumerate(rows):
        padded[row, longest - len(tokens) :] = tokens
        real[row, longest - len(tokens) :] = True
    return padded, real
