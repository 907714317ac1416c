"""Keep everything: the model as it was, for comparison and for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from namm.policies.base import MemoryPolicy, View


class KeepAll(MemoryPolicy):
    """Never forgets. Attention runs in one piece and nothing is observed."""

    name = "full"
    evicts = False

    def score(self, view: View) -> Tensor:
        return torch.zeros_like(view.positions, dtype=torch.float32)
