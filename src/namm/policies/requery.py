"""Requery: rank tokens by what the layers' own queries attend to when they ask again, of what came after them too."""

from __future__ import annotations

import torch
from torch import Tensor

from namm.kernels import Reduction
from namm.policies.base import Asked, MemoryPolicy, Rehearsal, Rotated, View, reduces


class Requery(MemoryPolicy):
    """Keep the tokens with the largest attention from any query of a rehearsal in place, in whichever heads they are.

    KVzip's rule without its second reading: one more product of a window's queries and keys inside each layer. What a
    query saw when it was read competes, as the text's second copy does there. Heads of all layers compete for slots.
    """

    name = "requery"
    channels = 1
    half_scale = 2.0**11
    per = "model"
    safeguard = "auto"  # what is sharp in one head is faint in another

    def __init__(
        self, rotated: Rotated = "auto", window: int = 512, competes: bool = True, asked: Asked = "window"
    ) -> None:
        self.rehearsal = Rehearsal(how="queries", rotated=rotated, window=window, competes=competes, asked=asked)

    @property
    def observer(self) -> Rehearsal | None:
        return self.rehearsal

    @reduces(Reduction("max"))
    def rehearse(self, state: Tensor, attention: Tensor) -> Tensor:
        return torch.maximum(state, attention.amax(-2, keepdim=True))

    def score(self, view: View) -> Tensor:
        largest = view.state.squeeze(-2)
        return largest if self.calibration is None else self.calibration.expected(largest, view.layer, view.heads)

    def __repr__(self) -> str:
        assert self.rehearsal is not None
        r = self.rehearsal
        asked = "" if r.asked == "held" else f", asked={r.asked!r}"  # caches of before there was a choice do not say it
        return f"Requery(rotated={r.rotated!r}, window={r.window}, competes={r.competes!r}{asked})"


class CalibratedRequery(Requery):
    """The same, as the attention that a second reading is expected to pay: heads are compared by what they are worth.

    KVzip's rule for the price of one reading, once the model is calibrated: `namm.calibrated`.
    """

    name = "requery-calibrated"
    calibrates = True
