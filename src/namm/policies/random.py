"""Random eviction: the floor every policy must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from namm.policies.base import MemoryPolicy, View


@dataclass(frozen=True, repr=True)
class Random(MemoryPolicy):
    """One priority per token, layer and head for the token's whole life, by a hash of its place and `seed`.

    Drawing anew at each update would forget old tokens exponentially; a priority for life does not.
    """

    name = "random"
    seed: int = 0

    def score(self, view: View) -> Tensor:
        head = view.heads[:, None]
        salt = _mix(torch.tensor(self.seed, device=head.device), torch.tensor(view.layer, device=head.device))
        return _mix(_mix(salt, head), view.positions.long()).float() / 2**31


def _mix(a: Tensor, b: Tensor) -> Tensor:
    """A 31-bit hash of two integers (the finaliser of MurmurHash3 on their combination)."""
    x = (a * 0x9E3779B1 + b + 1) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return (x ^ (x >> 16)) & 0x7FFFFFFF
