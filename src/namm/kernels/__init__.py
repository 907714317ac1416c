"""Observation and attention over ragged memory: one entry for each operation, the fastest back end that serves it.

| back end | serves | where |
| --- | --- | --- |
| native | float32 on a CPU with a C compiler at hand | `native.c`, compiled once for each machine |
| cuda | attention in half precision without a soft cap, from capability 8.0 on | `cuda.py`, torch's `varlen_attn` |
| fused | observing, asking in place, compacting and growing, with Triton on CUDA | `fused.py`, `triton_kernels.py` |
| torch | every device and dtype | `blockwise.py`, `spectrogram.py` |

`NAMM_KERNELS=torch` or `NAMM_KERNELS=native` in the environment forces one; torch also means no Triton. A back end for
another device joins with a module that has `serves` and the operations of `native` or `fused`.
"""

from __future__ import annotations

from torch import Tensor

from namm import spectrogram
from namm.kernels import fused, native
from namm.kernels.blockwise import (
    BLOCK_BYTES,
    ask,
    attend,
    attend_and_observe,
    attend_lanes,
    attend_one,
    look_back,
    replay,
)
from namm.kernels.lanes import Lanes, Reduction

__all__ = [
    "Lanes",
    "Reduction",
    "ask",
    "attend",
    "attend_and_observe",
    "attend_lanes",
    "attend_one",
    "backend",
    "fused",
    "look_back",
    "observe_spectrogram",
    "replay",
    "rows_at_once",
]


def observe_spectrogram(state: Tensor, attention: Tensor) -> Tensor:
    """Moving average of spectrogram magnitudes after the queries of `attention` (spec 3, 4).

    Args:
        state: `[head, 17, slot]`.
        attention: `[head, query, slot]`, causal, the first 16 rows those of the last 16 queries before.
    """
    if native.serves(attention):
        return native.observe_spectrogram(state, attention)
    return spectrogram.moving_average(state, attention)


def rows_at_once(lanes: Lanes, hop: int) -> int:
    """Queries whose rows of attention fit into memory together, whole hops."""
    return max(1, BLOCK_BYTES // (4 * max(1, len(lanes.counts) * max(lanes.counts)) * hop)) * hop


def backend() -> str:
    """The back end in use for float32 on the CPU: "native" or "torch"."""
    return "native" if native.library() is not None else "torch"
