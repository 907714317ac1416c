"""The feature sets a NAMM may read, by name.

A feature set says what is observed of each cached token (`channels` numbers of state, updated as queries arrive) and
how state and age become the network's input. The memory stores and moves state without knowing what it means, so a
new set joins by being registered here.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from namm import kernels, spectrogram
from namm.errors import ConfigurationError, nearest


@runtime_checkable
class FeatureSet(Protocol):
    """What a NAMM sees of a token.

    Attributes:
        channels: numbers of state per token, normalised by the statistics of the artefact.
        features: numbers the network reads per token.
        hop: queries are observed in multiples of this.
        overlap: queries before them whose attention is given once more.
        half_scale: in half precision the state is held as float16 times this, a power of two that keeps small
            averages out of float16's subnormal range.
    """

    channels: int
    features: int
    hop: int
    overlap: int
    half_scale: float

    def observe(
        self, state: Float[Tensor, "*lead channel slot"], attention: Float[Tensor, "*lead query slot"]
    ) -> Float[Tensor, "*lead channel slot"]:
        """State after the queries of `attention`, whose first `overlap` rows were seen before."""
        ...

    def assemble(
        self, normalised: Float[Tensor, "*lead slot channel"], age: Int[Tensor, "*lead slot"]
    ) -> Float[Tensor, "*lead slot feature"]:
        """The network's input."""
        ...


class PaperFeatures:
    """8 recency dimensions, then the 17 normalised spectrogram bins (spec 3-6)."""

    channels = spectrogram.BINS
    features = spectrogram.RECENCY_DIMS + spectrogram.BINS
    hop = spectrogram.HOP
    overlap = spectrogram.HOP
    half_scale = 2.0**11

    def observe(self, state: Tensor, attention: Tensor) -> Tensor:
        return kernels.observe_spectrogram(state, attention)

    def assemble(self, normalised: Tensor, age: Tensor) -> Tensor:
        return torch.cat([spectrogram.recency(age), normalised], dim=-1)


FEATURE_SETS: dict[str, FeatureSet] = {"paper": PaperFeatures()}


def feature_set(name: str) -> FeatureSet:
    """The feature set called `name`."""
    if name not in FEATURE_SETS:
        raise ConfigurationError("a known feature set", repr(name), nearest(name, FEATURE_SETS))
    return FEATURE_SETS[name]
