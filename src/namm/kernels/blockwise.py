"""Attention and its observation in one blockwise pass over the queries.

Probabilities live only inside a block of queries small enough to stay in the processor's cache; what leaves the block
is the attention output, the log-sum-exp of each query and whatever the observer took from the probabilities.

Axes: `head` is a kv head, `group` its query heads, `query` the new tokens, `slot` the cached ones, oldest first, the
new tokens last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from namm.kernels import cuda, native
from namm.kernels.lanes import Lanes

Query = Float[Tensor, "head group query dim"]
Key = Float[Tensor, "head slot dim"]
Value = Float[Tensor, "head slot value_dim"]
Output = Float[Tensor, "head group query value_dim"]
Empty = Bool[Tensor, "head slot"] | None
Observe = Callable[[Float[Tensor, "head query slot"]], None]

_QUERY_BLOCK = 128
BLOCK_BYTES = 2**30
_TILE = 256


def attend(
    query: Query,
    key: Key,
    value: Value,
    scale: float,
    visible: Bool[Tensor, "head query slot"] | None = None,
    empty: Empty = None,
) -> Output:
    """Causal attention of the newest tokens over all slots, with nothing observed.

    Args:
        visible: which slots each query may attend to, in place of causality.
        empty: slots that hold nothing; None if all hold something.
    """
    heads, group, queries, _ = query.shape
    slots = key.shape[1]
    if visible is None and empty is not None:
        causality = torch.ones(queries, slots, dtype=torch.bool, device=query.device).tril(slots - queries)
        visible = causality & ~empty[:, None]
    causal = visible is None and queries == slots
    if visible is None and not causal:
        causality = torch.ones(queries, slots, dtype=torch.bool, device=query.device)
        mask: Tensor | None = causality.tril(slots - queries)
    else:
        mask = None if visible is None else visible.repeat_interleave(group, 0)[None]
    out = F.scaled_dot_product_attention(
        query.flatten(0, 1)[None],
        key[None],
        value[None],
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=group > 1,
    )
    return out.view(heads, group, queries, -1)


def attend_one(
    query: Float[Tensor, "lane group dim"], pools: Sequence[Lanes], scale: float
) -> Float[Tensor, "lane group value_dim"]:
    """Attention of the newest token over all slots of lanes that may hold unequal numbers of them."""
    alike = {t.dtype for lanes in pools for t in (query, lanes.keys, lanes.values)} == {query.dtype}  # or torch says so
    if alike and native.serves(query, torch.bfloat16):
        return native.attend_one(query, pools, scale)
    if all(cuda.serves(query, lanes) for lanes in pools):
        sizes = [len(lanes.counts) for lanes in pools]
        each = zip(query.unsqueeze(2).split(sizes), pools, strict=True)
        out = [cuda.attend(part, lanes, scale)[0].squeeze(2) for part, lanes in each]
        return out[0] if len(out) == 1 else torch.cat(out)
    places = [(lanes, *place) for lanes in pools for place in zip(lanes.starts, lanes.counts, strict=True)]
    out = [  # the group takes the place of the queries: no key is repeated
        F.scaled_dot_product_attention(
            one[None], lanes.keys[start : start + n][None], lanes.values[start : start + n][None], scale=scale
        )
        for one, (lanes, start, n) in zip(query, places, strict=True)
    ]
    return torch.cat(out)


def attend_lanes(query: Query, lanes: Lanes, scale: float) -> tuple[Output, Float[Tensor, "head group query"]] | None:
    """Causal attention of the newest tokens of each lane and its log-sum-exp, where one kernel serves them all."""
    return cuda.attend(query, lanes, scale) if cuda.serves(query, lanes) else None


def attend_and_observe(
    query: Query,
    key: Key,
    value: Value,
    scale: float,
    *,
    softcap: float | None = None,
    visible: Bool[Tensor, "head query slot"] | None = None,
    empty: Empty = None,
    carried: Float[Tensor, "head carried old_slot"] | None = None,
    hop: int = 1,
    overlap: int = 0,
    observe: Observe | None = None,
    known: tuple[Output, Float[Tensor, "head group query"]] | None = None,
) -> tuple[Output, Float[Tensor, "head group query"]]:
    """Causal attention of the newest tokens over all slots; `observe` is given what they attend to.

    Args:
        visible: which slots each query may attend to, in place of causality.
        empty: slots that hold nothing; None if all hold something.
        carried: group-mean attention of earlier queries to the old slots: `overlap` rows that were observed, then
            those that still wait for a full hop.
        hop: `observe` is called with `overlap` rows seen before and a multiple of `hop` new ones.
        observe: receives group-mean attention; its slots end at the newest token of the block.
        known: what is to be returned, if a fused kernel has computed it; then probabilities are for `observe` alone.

    Returns:
        The output in the dtype of `query`, and the log-sum-exp of the scaled logits of each query, float32.
    """
    heads, group, queries, _ = query.shape
    slots = key.shape[1]
    first = slots - queries
    half = _half(query, softcap) and visible is None and empty is None  # then probabilities are not at hand
    mixes = not half and known is None
    key_t, value_f = key.transpose(1, 2), value.float() if mixes else None
    if known is not None:
        out, lse = known
    else:
        out = attend(query, key, value, scale) if half else query.new_empty(heads, group, queries, value.shape[-1])
        lse = torch.empty(heads, group, queries, device=query.device)
    if observe is None and known is not None:
        return out, lse
    key_t = key_t if half else _widened(key_t)
    rows = carried if carried is not None else lse.new_zeros(heads, overlap, first)
    size = _block(query, slots) if visible is None else queries
    for start in range(0, queries, size):
        stop = min(start + size, queries)
        n = stop - start
        seen = slots if visible is not None else first + stop
        old = rows.shape[1]
        attention = lse.new_empty(heads, old + n, seen)
        attention[:, :old, : rows.shape[2]] = rows
        attention[:, :old, rows.shape[2] :] = 0
        causal_from = first + start if visible is None else seen
        to = attention[:, old:], lse[:, :, start:stop]
        if half:
            _softmax_half(query[:, :, start:stop], key_t[:, :, :seen], scale, causal_from, *to)
        else:
            logits = _logits(query[:, :, start:stop], key_t[:, :, :seen], scale, softcap)
            if visible is not None:
                logits.masked_fill_(~visible[:, None, start:stop], -torch.inf)
            if empty is not None:
                logits.masked_fill_(empty[:, None, None, :seen], -torch.inf)
            if value_f is None:
                _mask_future(logits.sub_(to[1][..., None]), causal_from)
                torch.mean(logits.exp_(), dim=1, out=to[0]) if to[0].is_contiguous() else to[0].copy_(logits.mean(1))
            else:
                softmax_and_mean(logits, causal_from, *to)
                mixed = _products(logits.view(heads, group * n, seen), value_f[:, :seen])
                out[:, :, start:stop] = mixed.view(heads, group, n, -1)
        new = (old + n - overlap) // hop * hop
        if observe is not None and new > 0:
            observe(attention[:, : overlap + new])
            rows = attention[:, new:]
        else:
            rows = attention
    return out, lse


def ask(
    query: Query,
    key: Key,
    scale: float,
    softcap: float | None,
    observe: Observe,
    rival: Float[Tensor, "head group query"] | None = None,
    empty: Empty = None,
) -> None:
    """Queries look at all slots, without causality and without values; `observe` is given a few of them at a time.

    Group-mean attention: the softmax over the slots of each query head, then its mean over the group.

    Args:
        rival: one more logit for each query, which takes its share of the softmax.
    """
    size = _block(query, key.shape[1])
    for start in range(0, query.shape[2], size):
        part = slice(start, start + size)
        against = None if rival is None else rival[:, :, part].contiguous()
        observe(_looking(query[:, :, part], key, scale, softcap, key.shape[1], against, empty)[0])


def look_back(
    query: Query, key: Key, scale: float, softcap: float | None, empty: Empty = None
) -> tuple[Float[Tensor, "head query slot"], Float[Tensor, "head group query"]]:
    """Group-mean attention of the newest tokens' queries, whose output is known, and their log-sum-exp."""
    return _looking(query, key, scale, softcap, key.shape[1] - query.shape[2], None, empty)


def _looking(
    query: Query, key: Key, scale: float, softcap: float | None, causal_from: int, rival: Tensor | None, empty: Empty
) -> tuple[Float[Tensor, "head query slot"], Float[Tensor, "head group query"]]:
    heads, group, queries, _ = query.shape
    attention = torch.empty(heads, queries, key.shape[1], device=query.device)
    lse = torch.empty(heads, group, queries, device=query.device)
    if _half(query, softcap) and empty is None:
        _softmax_half(query, key.transpose(1, 2), scale, causal_from, attention, lse, rival)
    else:
        logits = _logits(query, _widened(key.transpose(1, 2)), scale, softcap)
        if empty is not None:
            logits.masked_fill_(empty[:, None, None], -torch.inf)
        softmax_and_mean(logits, causal_from, attention, lse, rival)
    return attention, lse


def replay(
    query: Query,
    lse: Float[Tensor, "head group query"],
    key: Key,
    scale: float,
    softcap: float | None,
    visible: Bool[Tensor, "head query slot"],
) -> Float[Tensor, "head query slot"]:
    """Group-mean attention of earlier queries to the slots that are left, from their log-sum-exp."""
    logits = _logits(query, _widened(key.transpose(1, 2)), scale, softcap)
    return logits.sub_(lse[..., None]).exp_().mean(1).masked_fill_(~visible, 0.0)


def _logits(
    query: Query, key_t: Float[Tensor, "head dim slot"], scale: float, softcap: float | None
) -> Float[Tensor, "head group query slot"]:
    """Scaled products of queries and keys in float32, soft-capped if need be."""
    heads, group, queries, dim = query.shape
    if key_t.dtype != torch.float32:
        rows = query.reshape(heads, group * queries, dim)
        logits = torch.bmm(rows, key_t, out_dtype=torch.float32).mul_(scale)
    else:
        logits = _products((query.float() * scale).reshape(heads, group * queries, dim), key_t)
    logits = logits.view(heads, group, queries, -1)
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def _half(query: Tensor, softcap: float | None) -> bool:
    """Whether logits are computed in bfloat16, as the model's own attention does without a fused kernel."""
    on_cpu = query.device.type == "cpu" and query.dtype == torch.bfloat16 and softcap is None
    return on_cpu and native.multiplies_half()


def _softmax_half(
    query: Query,
    key_t: Float[Tensor, "head dim slot"],
    scale: float,
    causal_from: int,
    mean: Float[Tensor, "head query slot"],
    lse: Float[Tensor, "head group query"],
    rival: Float[Tensor, "head group query"] | None = None,
) -> None:
    """As `softmax_and_mean` of the logits, which come and go in bfloat16.

    They are computed in tiles of one shape, the last of which overlaps the one before: torch makes a kernel at first
    sight of a shape, which takes longer than the product, and no two heads hold equally many slots.
    """
    heads, group, queries, dim = query.shape
    slots = key_t.shape[2]
    width = min(slots, _TILE)
    starts = [*range(0, slots - width, width), slots - width]
    rows = query.reshape(heads, group * queries, dim)
    tiles = query.new_empty(heads, len(starts), group * queries, width)
    for head in range(heads):
        for tile, start in enumerate(starts):
            torch.mm(rows[head], key_t[head, :, start : start + width], out=tiles[head, tile])
    native.softmax_and_mean_half(tiles, scale, causal_from, mean, lse, rival)


def _products(a: Float[Tensor, "head m k"], b: Float[Tensor, "head k n"]) -> Float[Tensor, "head m n"]:
    """`a @ b` for each head. On a CPU large products are 15-20 % faster one by one, those of few rows 35 % slower."""
    if a.device.type != "cpu" or a.shape[1] < 64:
        return torch.bmm(a, b)
    out = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    for head in range(a.shape[0]):
        torch.mm(a[head], b[head], out=out[head])
    return out


def softmax_and_mean(
    logits: Float[Tensor, "head group query slot"],
    causal_from: int,
    mean: Float[Tensor, "head query slot"],
    lse: Float[Tensor, "head group query"],
    rival: Float[Tensor, "head group query"] | None = None,
) -> None:
    """Softmax in place over the slots; its mean over the group into `mean`, its log-sum-exp into `lse`.

    Query `i` sees the first `causal_from + i + 1` slots. A `rival`, contiguous, is one more logit of each query, which
    takes its share of what the mean is of, and leaves the log-sum-exp as it is.
    """
    if native.serves(logits):
        native.softmax_and_mean(logits, causal_from, mean, lse, rival)
        return
    _mask_future(logits, causal_from)
    lse.copy_(torch.logsumexp(logits, dim=-1))
    torch.softmax(logits, dim=-1, out=logits)
    if rival is not None:
        logits *= torch.sigmoid(lse - rival)[..., None]
    torch.mean(logits, dim=1, out=mean) if mean.is_contiguous() else mean.copy_(logits.mean(1))


def _mask_future(logits: Float[Tensor, "head group query slot"], causal_from: int) -> None:
    queries, slots = logits.shape[-2:]
    if causal_from + 1 < slots:
        future = torch.ones(queries, slots - causal_from, dtype=torch.bool, device=logits.device).triu(1)
        logits[..., causal_from:].masked_fill_(future, -torch.inf)


def _block(query: Query, slots: int) -> int:
    """Queries whose probabilities are at hand at a time: on an accelerator as many as memory and few launches allow."""
    if query.device.type == "cpu":
        return _QUERY_BLOCK
    return max(1, BLOCK_BYTES // (4 * query.shape[0] * query.shape[1] * slots * _QUERY_BLOCK)) * _QUERY_BLOCK


def _widened(key_t: Float[Tensor, "head dim slot"]) -> Float[Tensor, "head dim slot"]:
    """Keys in the precision of products: on CUDA half precision with float32 results, which copies nothing."""
    return key_t if key_t.device.type == "cuda" else key_t.float()
