"""SnapKV: what the last window of queries looks at, with its neighbourhood (Li et al., 2024, arXiv 2404.14469)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from namm.errors import ConfigurationError
from namm.policies.base import PROTECTED, MemoryPolicy, View, newest

WINDOW = 32


@dataclass(frozen=True, repr=True)
class SnapKV(MemoryPolicy):
    """Mean attention of the last 32 queries, pooled over `kernel` neighbours; the window itself always stays.

    The paper compresses once, after the prompt; here the same score serves every update.
    """

    name = "snapkv"
    channels = 2  # mean attention of the last two hops of 16 queries: together the window of 32
    kernel: int = 5

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ConfigurationError("an odd kernel >= 1", self.kernel, "The paper uses 5 or 7.")

    def observe(self, state: Tensor, attention: Tensor) -> Tensor:
        hops = attention.unflatten(-2, (-1, self.hop)).mean(-2)  # [..., hop, slot]
        window = F.pad(state, (0, 0, 0, hops.shape[-2]))
        window[..., 2:, :] = hops
        return window[..., -2:, :].clone()

    def score(self, view: View) -> Tensor:
        votes = view.state.mean(-2)
        pooled = self._pooled(votes)
        if view.padded:
            pooled = pooled / self._pooled(view.held.float())  # over neighbours that are held
        return pooled.masked_fill(newest(view, WINDOW), PROTECTED)

    def _pooled(self, values: Tensor) -> Tensor:
        return F.avg_pool1d(values, self.kernel, stride=1, padding=self.kernel // 2, count_include_pad=False)
