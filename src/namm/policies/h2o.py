"""H2O: heavy hitters and a recent window (Zhang et al., 2023, arXiv 2306.14048)."""

from __future__ import annotations

from torch import Tensor

from namm.kernels import Reduction
from namm.policies.base import PROTECTED, MemoryPolicy, View, newest, reduces


class H2O(MemoryPolicy):
    """Half of the budget for the most recent tokens, half for those with the largest attention received in total."""

    name = "h2o"
    channels = 1

    @reduces(Reduction("sum"))
    def observe(self, state: Tensor, attention: Tensor) -> Tensor:
        return state + attention.sum(-2, keepdim=True)  # their eq. for F_score: accumulated attention

    def score(self, view: View) -> Tensor:
        recent = (view.target or 0) // 2
        return view.state.squeeze(-2).masked_fill(newest(view, recent), PROTECTED)
