"""KVzip: what the model attends to when it reads the text again (Kim et al., 2025, arXiv 2505.23416)."""

from __future__ import annotations

import torch
from torch import Tensor

from namm.policies.base import MemoryPolicy, Rehearsal, View


class KVzip(MemoryPolicy):
    """Keep the tokens with the largest attention from any query of a rehearsal, in whichever heads they are.

    As theirs, but block by block while the text is read, and without an instruction before the repetition.
    """

    name = "kvzip"
    channels = 1
    rehearsal = Rehearsal()
    per = "layer"

    def rehearse(self, state: Tensor, attention: Tensor) -> Tensor:
        return torch.maximum(state, attention.amax(-2, keepdim=True))

    def score(self, view: View) -> Tensor:
        return view.state.squeeze(-2)
