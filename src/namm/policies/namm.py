"""The learned policy: a NAMM reads spectrograms of attention and scores each token (spec 3-8)."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from namm.calibration import Calibration
from namm.kernels import Reduction
from namm.network import NAMM
from namm.policies.base import MemoryPolicy, Rehearsal, View
from namm.selection import Per, Safeguard, Selection, Threshold


@dataclass(frozen=True, repr=False, eq=False)
class NAMMPolicy(MemoryPolicy):
    """Keep what the network scores at or above zero, or its best up to a budget."""

    name = "namm"
    absolute = True
    network: NAMM
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        _ = self.rehearsal  # says what does not go together

    @property
    def calibrates(self) -> bool:  # type: ignore[override]
        return self.network.config.calibrated

    def calibrated(self, calibration: Calibration | None) -> NAMMPolicy:
        return replace(self, calibration=calibration) if self.calibrates else self

    @property
    def channels(self) -> int:  # type: ignore[override]
        return self.network.feature_set.channels

    @property
    def hop(self) -> int:  # type: ignore[override]
        return self.network.feature_set.hop

    @property
    def overlap(self) -> int:  # type: ignore[override]
        return self.network.feature_set.overlap

    @property
    def half_scale(self) -> float:  # type: ignore[override]
        return self.network.feature_set.half_scale

    def default_selection(self) -> Selection:
        return Threshold(0.0)

    @property
    def observer(self) -> Hashable:
        return self.network.config.features, self.rehearsal

    @property
    def per(self) -> Per:  # type: ignore[override]
        return self.network.config.per

    @property
    def safeguard(self) -> Safeguard:  # type: ignore[override]
        return self.network.config.safeguard

    @property
    def rehearsal(self) -> Rehearsal | None:  # type: ignore[override]
        c = self.network.config
        if not self.network.feature_set.rehearses:
            return None
        return Rehearsal(
            c.rehearsal, how=c.rehearses, window=c.window, rotated=c.rotated, competes=c.competes, asked=c.asked
        )

    def observe(self, state: Tensor, attention: Tensor) -> Tensor:
        return self.network.feature_set.observe(state, attention)

    def rehearse(self, state: Tensor, attention: Tensor) -> Tensor:
        return self.network.feature_set.rehearse(state, attention)

    def state_of(self, view: View) -> Float[Tensor, "batch kv_head channel slot"]:
        """What the network sees of the slots: what was observed, calibrated for the model if it is."""
        if (known := self.calibration) is None:
            return view.state
        features = self.network.feature_set
        return features.expected(view.state, lambda echo: known.expected(echo, view.layer, view.heads))

    def reductions(self, rehearsal: bool) -> tuple[Reduction | None, ...]:
        return self.network.feature_set.reductions(rehearsal)

    def score(self, view: View) -> Tensor:
        network, state = self.network.to(view.state.device), self.state_of(view)
        held = view.held if view.padded and network.feature_set.levels else None
        age = view.age if network.feature_set.recency else None
        return network.scores(network.features(state, age, held), rows=view.rows)

    def __repr__(self) -> str:
        return f"NAMMPolicy({self.network.config})"
