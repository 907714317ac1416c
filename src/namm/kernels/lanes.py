"""Lanes: kv heads that each hold their own number of slots, in one pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Lanes:
    """
    Attributes:
        keys, values: the pool, `[slot, dim]`, contiguous.
        starts, counts: the first slot of each lane, and how many it has.
        table: on an accelerator the same there, int32, the starts with one more at the end.
        positions, state: of the pool, where somebody looks at them: `[slot]` and `[channel, slot]`.
    """

    keys: Float[Tensor, "slot dim"]
    values: Float[Tensor, "slot value_dim"]
    starts: list[int]
    counts: list[int]
    table: tuple[Int[Tensor, " end"], Int[Tensor, " lane"]] | None = None
    positions: Int[Tensor, " slot"] | None = None
    state: Float[Tensor, "channel slot"] | None = None


@dataclass(frozen=True)
class Reduction:
    """All that a number of state takes from the attention to its slot: its sum over the queries, or its largest.

    Attributes:
        faint: if set, the number is log(1 + x / faint) of that.
    """

    how: Literal["sum", "max"]
    faint: float | None = None
