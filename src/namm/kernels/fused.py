"""What takes torch many launches over ragged lanes, in one each: the Triton kernels of `triton_kernels.py`.

| operation | does |
| --- | --- |
| `sums` | log-sum-exp of queries over the slots of their lane, that of a rival added |
| `reduce` | attention of queries, from their log-sum-exp, reduced over them into the policy's state in place |
| `rows` | the same as rows of group-mean attention, for a policy that looks at these |
| `turn` | queries turned on to later positions |
| `gather` | positions, state and keys of all lanes, right-aligned |
| `bend` | attention read through the calibrated curves of heads |
| `tally` | slots that stay in each lane, and whether a score is no number |
| `compact` | a pool of what stays |
| `grow` | a pool with room for new tokens, which are in it |

Each is one launch, through `launch`. Triton comes with torch's builds for CUDA; where it is missing, or the card is too
old for it, torch does the work and the log says so once.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from namm.kernels.lanes import Lanes, Reduction

logger = logging.getLogger(__name__)

LARGEST = {torch.float16: 256, torch.bfloat16: 256, torch.float32: 64}  # numbers of a key, without spilled registers
_WIDEST = 64  # query heads of a kv head
_OLDEST = (8, 0)  # compute capability

Query = Float[Tensor, "lane group query dim"]
_Sums = Float[Tensor, "lane group query"]


def serves(keys: Float[Tensor, "slot dim"], values: Float[Tensor, "slot value_dim"], group: int = 1) -> bool:
    """Whether these kernels compute on a pool like this, with so many query heads for each of its lanes."""
    dims = max(keys.shape[1], values.shape[1])
    return capable(keys.device) and keys.dtype == values.dtype and _fits(keys.dtype, dims, group)


@lru_cache(maxsize=256)
def _fits(dtype: torch.dtype, dims: int, group: int) -> bool:
    """Whether there is a tile for keys like these; the log says once if not."""
    if dims <= LARGEST.get(dtype, 0) and group <= _WIDEST:
        return True
    logger.warning(
        "keys of %d numbers in %s with %d query heads each are observed by torch alone, in several times the launches: "
        "Triton's kernels serve up to 256 in half precision, 64 in float32, and %d heads",
        dims, dtype, group, _WIDEST,
    )  # fmt: skip
    return False


@lru_cache(maxsize=32)
def capable(device: torch.device) -> bool:
    """Whether there are Triton and a card that it compiles for; the log says once what is missing."""
    if device.type != "cuda" or os.environ.get("NAMM_KERNELS") == "torch":
        return False
    if importlib.util.find_spec("triton") is None:
        missing = "Triton is not installed (torch's CUDA builds bring it)"
    elif torch.cuda.get_device_capability(device) < _OLDEST:
        missing = f"{torch.cuda.get_device_name(device)} is older than compute capability {_OLDEST[0]}.{_OLDEST[1]}"
    else:
        return True
    logger.warning("on %s memories observe and forget by torch, in several times the launches: %s", device, missing)
    return False


def launch(kernel: str, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run one kernel, the only way that any is run, on the device of its first argument."""
    from namm.kernels import triton_kernels

    if all(grid):
        with torch.cuda.device_of(arguments[0]):  # Triton takes the current one
            getattr(triton_kernels, kernel)[grid](*arguments, **constants)


def sums(
    query: Query, lanes: Lanes, scale: float, softcap: float | None, *, first: int | None,
    newest: int | None = None, later: int = 0, rival: _Sums | None = None,
) -> _Sums:  # fmt: skip
    """The log-sum-exp of each query over the slots of its lane.

    Args:
        first: position of the first query, each of which sees no later position than its own; None: they see all.
        newest: over so many newest slots only; None: over all.
        later: of these, so many newest are left out.
        rival: one more logit of each query.
    """
    query, (count, group, tokens, _) = _dense(query), query.shape
    out = torch.empty(count, group, tokens, device=query.device)
    sizes = _sizes(query)
    grid = count, -(-tokens // sizes["QUERIES"])
    launch(
        "sums", grid, query, lanes.keys, lanes.positions, *_table(lanes), out if rival is None else rival, out, scale,
        softcap or 0.0, first or 0, _most(newest), later, tokens, *query.stride()[:3],
        *(out if rival is None else rival).stride(), **sizes, CAUSAL=first is not None, CAPPED=softcap is not None,
        COMPETES=rival is not None,
    )  # fmt: skip
    return out


def reduce(
    query: Query, lse: _Sums, lanes: Lanes, scale: float, softcap: float | None, *, first: int | None,
    newest: int | None = None, later: int = 0, reductions: Sequence[Reduction | None], stored: float = 1.0,
) -> None:  # fmt: skip
    """Take into the state of each slot what it takes from the attention of these queries, mean over their group.

    Args:
        first, newest, later: as for `sums`.
        reductions: of each channel; None: it takes nothing.
        stored: what the state is held times.
    """
    query, tokens, state = _dense(query), query.shape[2], lanes.state
    assert state is not None
    sizes = _sizes(query)
    grid = len(query), -(-_width(lanes, newest, later) // sizes["SLOTS"])
    faint = {one.faint for one in reductions if one is not None and one.faint is not None}
    assert len(faint) <= 1, "logarithms of one kind"
    launch(
        "reduce", grid, query, lse, lanes.keys, lanes.positions, *_table(lanes), state, scale, softcap or 0.0,
        first or 0, _most(newest), later, tokens, state.shape[1], stored, faint.pop() if faint else 1.0,
        *query.stride()[:3], *lse.stride(), CHANNELS=len(reductions),
        SUMS=_bits(one is not None and one.how == "sum" for one in reductions),
        PEAKS=_bits(one is not None and one.how == "max" for one in reductions),
        LOGS=_bits(one is not None and one.faint is not None for one in reductions),
        **sizes, CAUSAL=first is not None, CAPPED=softcap is not None,
    )  # fmt: skip


def rows(
    query: Query, lse: _Sums, lanes: Lanes, scale: float, softcap: float | None, *, first: int | None,
    newest: int | None = None, later: int = 0, lead: int = 0,
) -> Float[Tensor, "lane row slot"]:  # fmt: skip
    """Group-mean attention of each query to the slots of its lane, right-aligned, after `lead` rows of zeros."""
    query, tokens, width = _dense(query), query.shape[2], _width(lanes, newest, later)
    out = torch.empty(len(query), lead + tokens, width, device=query.device)
    sizes = _sizes(query)
    launch(
        "rows", (len(query), -(-width // sizes["SLOTS"])), query, lse, lanes.keys, lanes.positions, *_table(lanes), out,
        scale, softcap or 0.0, first or 0, _most(newest), later, tokens, lead, width, *query.stride()[:3],
        *lse.stride(), **sizes, CAUSAL=first is not None, CAPPED=softcap is not None,
    )  # fmt: skip
    return out


def turn(query: Query, frequencies: Float[Tensor, " pair"], positions: int, interleaved: bool) -> Query:
    """Queries as they would be so many positions later, see `memory.rotation`."""
    count, group, tokens, dim = query.shape
    out = query.new_empty(count, group, tokens, dim)
    query, wide = _dense(query), _power(dim)
    at_once = 4096 // wide
    launch(
        "turn", (count, -(-group * tokens // at_once)), query, frequencies, out, positions, group, tokens,
        *query.stride()[:3], PAIRS=len(frequencies), INTERLEAVED=interleaved, DIM=dim, WIDE=wide, ROWS=at_once,
    )  # fmt: skip
    return out


def gather(
    lanes: Lanes, stored: float = 1.0, copies: bool = True
) -> tuple[
    Float[Tensor, "lane _ dim"], Int[Tensor, "lane slot"], Float[Tensor, "lane channel slot"], Bool[Tensor, "lane slot"]
]:  # fmt: skip
    """Keys, positions and state of all lanes, and which slots are empty: right-aligned, the state in float32.

    Without `copies` the keys are not filled in.
    """
    count, width, dim, device = len(lanes.counts), max(lanes.counts), lanes.keys.shape[1], lanes.keys.device
    assert lanes.state is not None
    keys = lanes.keys.new_empty(count, width if copies else 0, dim)
    positions = torch.empty(count, width, dtype=torch.int32, device=device)
    state = torch.empty(count, len(lanes.state), width, device=device)
    empty = torch.empty(count, width, dtype=torch.bool, device=device)
    slots = _slots(dim)
    launch(
        "gather", (count, -(-width // slots)), lanes.keys, lanes.positions, lanes.state, *_table(lanes), keys,
        positions, state, empty.view(torch.uint8), width, lanes.state.shape[1], stored, CHANNELS=len(lanes.state),
        DIM=dim, WIDE=_power(dim), SLOTS=slots, COPIES=copies,
    )  # fmt: skip
    return keys, positions, state, empty


def bend(
    attention: Float[Tensor, "batch kv_head slot"], places: Float[Tensor, "kv_head hinge"],
    bends: Float[Tensor, "kv_head hinge"], level: Float[Tensor, "kv_head 1"],
) -> Float[Tensor, "batch kv_head slot"]:  # fmt: skip
    """What attention is on a curve in logarithms, see `calibration`: level + sum_i bends_i max(0, x - places_i)."""
    attention, (rows, heads, width) = _dense(attention), attention.shape
    out = torch.empty(rows, heads, width, device=attention.device)
    launch(
        "bend", (rows * heads, -(-width // 1024)), attention, places, bends, level, out, heads, width,
        *attention.stride()[:2], HINGES=places.shape[1], SLOTS=1024,
    )  # fmt: skip
    return out


def tally(kept: Bool[Tensor, "lane slot"], scores: Float[Tensor, "lane slot"], lanes: Lanes) -> Int[Tensor, "2 lane"]:
    """How many slots of each lane stay, and where there are scores that are no numbers; both right-aligned."""
    out = torch.empty(2, len(kept), dtype=torch.int32, device=kept.device)
    kept, scores = kept.contiguous().view(torch.uint8), scores.contiguous()
    launch("tally", (len(kept),), kept, scores, _table(lanes)[1], out, *kept.shape, SLOTS=1024)
    return out


def compact(
    lanes: Lanes, kept: Bool[Tensor, "_ slot"], counts: Int[Tensor, " _"], mine: Int[Tensor, " lane"], total: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The pools of the slots that stay, with `total` slots, what is left over being free: all lanes of a store.

    Args:
        kept, counts: right-aligned, of the lanes that forget, and how many slots of each of these stay.
        mine: which of these each lane is; -1 where all slots stay.
    """
    assert lanes.state is not None
    pools = _pools(lanes, total)
    dim, value_dim = lanes.keys.shape[1], lanes.values.shape[1]
    slots = _slots(max(dim, value_dim))
    launch(
        "compact", (len(lanes.counts) + 1, -(-max(lanes.counts) // slots)), lanes.keys, lanes.values, lanes.positions,
        lanes.state, *_table(lanes), mine, counts, kept.contiguous().view(torch.uint8), *pools, len(lanes.counts),
        kept.shape[1], lanes.state.shape[1], total, ALL=_power(len(lanes.counts) + 1), CHANNELS=len(lanes.state),
        DIM=dim, WIDE=_power(dim), VALUE_DIM=value_dim, VALUE_WIDE=_power(value_dim), SLOTS=slots,
    )  # fmt: skip
    return pools


def grow(
    lanes: Lanes, keys: Float[Tensor, "row kv_head token dim"], values: Float[Tensor, "row kv_head token value_dim"],
    table: Int[Tensor, "line end"], room: int, total: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The pools with room for more and new tokens in it, whose state is 0.

    Args:
        table: start and count of each lane, its new start and room, which row of the new tokens it takes (-1: none)
            and the position of the first of them. One more at the end: the spare slots. Further lines are not read.
        room: of the largest lane.
    """
    assert lanes.state is not None
    pools = _pools(lanes, total)
    keys, values = _dense(keys), _dense(values)
    dim, value_dim = lanes.keys.shape[1], lanes.values.shape[1]
    slots = _slots(max(dim, value_dim))
    launch(
        "grow", (table.shape[1], -(-room // slots)), lanes.keys, lanes.values, lanes.positions, lanes.state, keys,
        values, table, *pools, table.shape[1] - 1, *keys.shape[1:3], lanes.state.shape[1], total, *keys.stride()[:3],
        *values.stride()[:3], CHANNELS=len(lanes.state), DIM=dim, WIDE=_power(dim), VALUE_DIM=value_dim,
        VALUE_WIDE=_power(value_dim), SLOTS=slots,
    )  # fmt: skip
    return pools


def _pools(lanes: Lanes, total: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Empty ones."""
    assert lanes.positions is not None
    assert lanes.state is not None
    keys, values = (t.new_empty(total, t.shape[1]) for t in (lanes.keys, lanes.values))
    return keys, values, lanes.positions.new_empty(total), lanes.state.new_empty(len(lanes.state), total)


def _table(lanes: Lanes) -> tuple[Tensor, Tensor]:
    assert lanes.table is not None
    assert all(numbers.is_contiguous() for numbers in lanes.table)
    return lanes.table


def _most(newest: int | None) -> int:
    return 2**31 - 1 if newest is None else newest


def _width(lanes: Lanes, newest: int | None, later: int) -> int:
    """The most slots that a lane is asked of."""
    return min(max(lanes.counts), _most(newest)) - later


def _dense(tensor: Tensor) -> Tensor:
    """With its last axis contiguous, as kernels read it."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _power(number: int) -> int:
    """The next power of two, 16 at least, which is what products of matrices take."""
    return max(16, 1 << (number - 1).bit_length())


def _slots(dim: int) -> int:
    """Slots that a program moves at a time."""
    return max(16, 8192 // _power(dim))


def tile(group: int, dim: int, dtype: torch.dtype) -> dict[str, int]:
    """The shape of a tile of logits, for which no register is spilled: `tests/test_triton_compiled.py`."""
    padded, wide, single = 1 << (group - 1).bit_length(), _power(dim), dtype == torch.float32
    return {
        "GROUP": group, "PADDED": padded, "QUERIES": max(1, (32 if single else 64) // padded), "DIM": dim, "WIDE": wide,
        "SLOTS": 32 if single or wide > 128 else 64, "num_warps": 4 if wide <= 64 else 8,
        "num_stages": 1 if single else 2,
    }  # fmt: skip


def _sizes(query: Tensor) -> dict[str, int]:
    return tile(query.shape[1], query.shape[3], query.dtype)


def _bits(marks: Any) -> int:
    """Marks of channels as the bits of a number."""
    return sum(1 << place for place, mark in enumerate(marks) if mark)
