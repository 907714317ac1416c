"""KVzip: what the model attends to when it reads the text again (Kim et al., 2025, arXiv 2505.23416)."""

from __future__ import annotations

import torch
from torch import Tensor

from namm.kernels import Reduction
from namm.policies.base import MemoryPolicy, Rehearsal, View, reduces
from namm.selection import Per


class KVzip(MemoryPolicy):
    """Keep the tokens with the largest attention from any query of a rehearsal, in whichever heads they are.

    As theirs, but block by block while the text is read, a budget for each layer, and without an instruction before the
    repetition.
    """

    name = "kvzip"
    channels = 1
    rehearsal = Rehearsal()
    per: Per = "layer"

    @reduces(Reduction("max"))
    def rehearse(self, state: Tensor, attention: Tensor) -> Tensor:
        return torch.maximum(state, attention.amax(-2, keepdim=True))

    def score(self, view: View) -> Tensor:
        return view.state.squeeze(-2)


class KVzipWhole(KVzip):
    """KVzip as published: the whole text is kept until it has been read twice, then one bar falls across the model.

    But for the instruction before the repetition, which is left out here too.
    """

    name = "kvzip-whole"
    per = "model"
    whole = True
