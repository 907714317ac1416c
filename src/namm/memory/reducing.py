"""The state of some slots while their policy takes sums and maxima from attention, a few queries at a time.

What costs little for a whole window is much for each of its blocks: a policy's state is read and written once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from namm.kernels import Reduction


class Reduced:
    """Attention, taken as a policy's `reductions` say; as many calls of `observe` or `rehearse` would, to the bit.

    Args:
        state: before; a copy is worked on.
        given: so many first rows of attention were taken before.
    """

    def __init__(
        self, state: Float[Tensor, "lane channel slot"], reductions: Sequence[Reduction | None], given: int
    ) -> None:
        self._state, self._reductions, self._given = state.clone(), reductions, given
        self._peaks = {
            channel: state.new_zeros(len(state), state.shape[2])
            for channel, one in enumerate(reductions)
            if one is not None and one.how == "max"
        }

    def __call__(self, attention: Float[Tensor, "lane query _"]) -> None:
        attention = attention[:, self._given :, : self._state.shape[2]]
        for channel, one in enumerate(self._reductions):
            if one is None:
                continue
            held = self._peaks.get(channel, self._state[:, channel])[:, : attention.shape[2]]
            if one.how == "max":
                torch.maximum(held, attention.amax(1), out=held)
            elif one.faint is None:
                held.add_(attention.sum(1))
            else:
                held.expm1_().mul_(one.faint).add_(attention.sum(1)).div_(one.faint).log1p_()

    def state(self) -> Float[Tensor, "lane channel slot"]:
        """After all that was taken."""
        for channel, peak in self._peaks.items():
            one, held = self._reductions[channel], self._state[:, channel]
            assert one is not None
            torch.maximum(held, peak if one.faint is None else peak.div_(one.faint).log1p_(), out=held)
        return self._state
