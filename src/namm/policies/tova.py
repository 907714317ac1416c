"""TOVA: token omission via attention (Oren et al., 2024, arXiv 2401.06104)."""

from __future__ import annotations

from torch import Tensor

from namm.policies.base import MemoryPolicy, View


class TOVA(MemoryPolicy):
    """Keep what the last query attends to most. Per kv head; the paper's default averages over all heads."""

    name = "tova"
    channels = 1

    def observe(self, state: Tensor, attention: Tensor) -> Tensor:
        return attention[..., -1:, :].clone()

    def score(self, view: View) -> Tensor:
        return view.state.squeeze(-2)
