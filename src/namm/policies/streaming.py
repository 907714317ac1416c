"""StreamingLLM: the first tokens and a sliding window (Xiao et al., 2023, arXiv 2309.17453)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm.policies.base import PROTECTED, MemoryPolicy, View


@dataclass(frozen=True, repr=True)
class StreamingLLM(MemoryPolicy):
    """Keep `sinks` first tokens, which act as attention sinks, and the most recent ones up to the budget."""

    name = "streaming"
    sinks: int = 4

    def score(self, view: View) -> Tensor:
        return (-view.age).float().masked_fill(view.positions < self.sinks, PROTECTED)
