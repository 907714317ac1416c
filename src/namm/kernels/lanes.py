"""Lanes: kv heads that each hold their own number of slots, in one pool."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Lanes:
    """
    Attributes:
        keys, values: the pool, `[slot, dim]`, contiguous.
        starts, counts: the first slot of each lane, and how many it has.
        table: on an accelerator the same there, int32, the starts with one more at the end.
    """

    keys: Float[Tensor, "slot dim"]
    values: Float[Tensor, "slot value_dim"]
    starts: list[int]
    counts: list[int]
    table: tuple[Int[Tensor, " end"], Int[Tensor, " lane"]] | None = None
