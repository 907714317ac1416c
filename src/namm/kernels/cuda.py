"""Attention of ragged lanes on a CUDA device: each lane is a sequence of its own to torch's `varlen_attn`.

The lane's query heads are its heads, and it has one kv head; nothing is copied or padded, and the host does not wait.
"""

from __future__ import annotations

import inspect
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from namm.kernels.lanes import Lanes

LARGEST = 256  # numbers of a key that flash attention takes


def serves(query: Tensor, lanes: Lanes) -> bool:
    """Whether `varlen_attn` computes on these."""
    dim, value_dim = lanes.keys.shape[1], lanes.values.shape[1]
    alike = query.dtype == lanes.keys.dtype == lanes.values.dtype and query.dtype in (torch.float16, torch.bfloat16)
    fits = dim == value_dim and dim <= LARGEST and dim % 8 == 0
    return query.device.type == "cuda" and alike and fits and lanes.table is not None and capable(query.device)


@lru_cache(maxsize=32)
def capable(device: torch.device) -> bool:
    """Whether the card, and this version of torch, have it."""
    from torch.nn.attention.varlen import varlen_attn

    ragged = {"seqused_k", "enable_gqa", "window_size"} <= inspect.signature(varlen_attn).parameters.keys()
    return ragged and torch.cuda.get_device_capability(device) >= (8, 0)


def attend(
    query: Float[Tensor, "lane group token dim"], lanes: Lanes, scale: float
) -> tuple[Float[Tensor, "lane group token value_dim"], Float[Tensor, "lane group token"]]:
    """Causal attention of the newest tokens over all slots of their lane, and the log-sum-exp of each query."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    count, group, tokens, dim = query.shape
    assert lanes.table is not None
    starts, used = lanes.table
    assert starts.is_contiguous()
    assert used.is_contiguous()
    out, lse = varlen_attn(
        query.transpose(1, 2).reshape(count * tokens, group, dim),
        lanes.keys.unsqueeze(1),
        lanes.values.unsqueeze(1),
        _ends(count, tokens, query.device),
        starts,
        tokens,
        max(lanes.counts),
        return_aux=AuxRequest(lse=True),
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=group > 1,
        seqused_k=used,
    )
    return out.unflatten(0, (count, tokens)).transpose(1, 2), lse.unflatten(1, (count, tokens)).transpose(0, 1)


@lru_cache(maxsize=32)
def _ends(lanes: int, tokens: int, device: torch.device) -> Int[Tensor, " end"]:
    """Where the queries of each lane begin, one lane after another."""
    return torch.arange(0, (lanes + 1) * tokens, tokens, dtype=torch.int32, device=device)
