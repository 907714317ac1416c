"""Key norm: tokens whose keys are short are attended to (Devoto et al., 2024, arXiv 2406.11430)."""

from __future__ import annotations

from torch import Tensor

from namm.policies.base import MemoryPolicy, View


class KNorm(MemoryPolicy):
    """Keep the keys of the smallest L2 norm. Looks at no attention."""

    name = "knorm"

    def score(self, view: View) -> Tensor:
        return -view.keys.float().norm(dim=-1)
