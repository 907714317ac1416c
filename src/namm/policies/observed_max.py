"""Observed maximum: rank tokens by the largest attention any query has paid them so far.

A needle is attended to strongly and rarely. A sum or an average over queries loses it; the maximum does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from namm.kernels import Reduction
from namm.policies.base import MemoryPolicy, View, reduces


class ObservedMax(MemoryPolicy):
    """Keep the tokens with the largest group-mean attention received from any one query."""

    name = "observed-max"
    channels = 1

    @reduces(Reduction("max"))
    def observe(self, state: Tensor, attention: Tensor) -> Tensor:
        return torch.maximum(state, attention.amax(-2, keepdim=True))

    def score(self, view: View) -> Tensor:
        return view.state.squeeze(-2)
