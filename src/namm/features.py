"""The feature sets a NAMM may read, by name.

A feature set is made of channels: numbers that are observed of each cached token and carried along with it, updated as
queries arrive. When an update is due they become signals, which are normalised and, with the token's age, are what the
network reads. The memory stores and moves channels without knowing what they mean, so a new set joins by being
registered here.

| name | channels (numbers a token) | the network reads, besides age |
| --- | --- | --- |
| paper | spectrogram (17) | the spectrogram (spec 3-6) |
| log | spectrogram (17) | the logarithm of the spectrogram |
| extended | spectrogram, peak (18) | and the largest attention received, by the token and around it |
| rehearsed | spectrogram, peak, echo (19) | and that of rehearsals, and the two together |
| compact | mass, peak (2) | no spectrogram and no age: total and largest attention, at a ninth of the bytes |
| compact-rehearsed | mass, peak, echo (3) | and that of rehearsals, and the two together |
| levelled | mass, peak, echo (3) | and where each peak stands in its head, so that heads can be compared |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import max_pool1d

from namm import kernels, spectrogram
from namm.errors import ConfigurationError, nearest
from namm.kernels import Reduction

FAINT = 1e-4  # attention below this is as good as none
_SPREAD = 0.1  # of a peak over a head, at least: where all are alike, noise must not count
_AROUND = 5  # slots, the token's own in their middle, over which the neighbourhood of a token is taken


class Channel(ABC):
    """Numbers observed of a token.

    Attributes:
        name: what its signal is called.
        size: how many.
        overlap: queries seen before whose attention is given once more.
        logarithm: whether the network reads log(1 + x / FAINT) of it; a peak and a mass are held as such already.
        peak: whether it is a largest attention, of which the neighbours' is read too.
        rehearses: whether it watches rehearsals, in place of the reading itself.
        reduction: all that it takes from attention, if that is so little; then it is one number.
    """

    name: ClassVar[str]
    size: ClassVar[int] = 1
    overlap: ClassVar[int] = 0
    logarithm: ClassVar[bool] = False
    peak: ClassVar[bool] = False
    rehearses: ClassVar[bool] = False
    reduction: ClassVar[Reduction | None] = None

    @abstractmethod
    def observe(
        self, state: Float[Tensor, "*lead channel slot"], attention: Float[Tensor, "*lead query slot"]
    ) -> Float[Tensor, "*lead channel slot"]:
        """State after the queries of `attention`, whose first `overlap` rows were given before."""


class Spectrogram(Channel):
    """Moving average of the magnitudes of a short-time Fourier transform (spec 3, 4)."""

    name = "bin"
    size = spectrogram.BINS
    overlap = spectrogram.HOP

    def observe(self, state: Tensor, attention: Tensor) -> Tensor:
        return kernels.observe_spectrogram(state, attention)


class LogSpectrogram(Spectrogram):
    """The same, read as logarithms: magnitudes span five decades, and otherwise only the largest are seen."""

    logarithm = True


class Mass(Channel):
    """log(1 + s / FAINT), s the sum of attention from all queries."""

    name = "mass"
    reduction = Reduction("sum", FAINT)

    def observe(self, state: Tensor, attention: Tensor) -> Tensor:
        return _log(_attention(state) + attention.sum(-2, keepdim=True))


class Peak(Channel):
    """log(1 + m / FAINT), m the largest attention from any one query: what an average over queries levels out."""

    name = "peak"
    peak = True
    reduction = Reduction("max", FAINT)

    def observe(self, state: Tensor, attention: Tensor) -> Tensor:
        return torch.maximum(state, _log(attention.amax(-2, keepdim=True)))


class Echo(Peak):
    """The peak over the queries of rehearsals."""

    name = "echo"
    rehearses = True


def _log(attention: Tensor) -> Tensor:
    return torch.log1p(attention / FAINT)


def _attention(logarithm: Tensor) -> Tensor:
    return logarithm.expm1() * FAINT


class FeatureSet:
    """What a NAMM sees of a token: its age (with `recency`), its channels, and what follows from them.

    Sinusoids of age mean something else beyond the lengths that a memory was evolved on; without them it is the same
    for texts of any length.

    Attributes:
        channels: numbers of state per token.
        names: of the signals, which are made of the channels and normalised by the statistics of the artefact: "peak",
            "echo", "both" (their sum), "around peak" (the largest among neighbours), "level peak" (the mean over the
            head's slots), "relative peak" (how far above that, in standard deviations over these), "bin 0" and so on.
        features: numbers the network reads per token: its age, if at all, then the signals.
        hop: queries are observed in multiples of this.
        overlap: queries before them whose attention is given once more.
        rehearses: whether it watches rehearsals.
        half_scale: in half precision the state is held as float16 times this, a power of two that keeps small
            averages out of float16's subnormal range.
    """

    hop = spectrogram.HOP
    half_scale = 2.0**11

    def __init__(self, *parts: Channel, recency: bool = True, levels: bool = False) -> None:
        self.parts, self.recency, self.levels = parts, recency, levels
        self.sizes = [part.size for part in parts]
        self.channels = sum(self.sizes)
        self.overlap = max(part.overlap for part in parts)
        self.rehearses = any(part.rehearses for part in parts)
        places = [sum(self.sizes[:i]) for i, part in enumerate(parts) if part.peak]
        assert places == [*range(places[0], places[-1] + 1)] if places else True, "peaks stand side by side"
        self._peaks, self._several = slice(*(places[0], places[-1] + 1) if places else (0, 0)), len(places) > 1
        names = [f"{p.name} {i}" if p.size > 1 else p.name for p in parts for i in range(p.size)]
        peaks = [part.name for part in parts if part.peak]
        both = ["both"] if len(peaks) > 1 else []
        kinds = ["around", "level", "relative"] if levels else ["around"]
        self.names = (*names, *both, *(f"{kind} {name}" for kind in kinds for name in peaks + both))
        self.signals = len(self.names)
        self.features = recency * spectrogram.RECENCY_DIMS + self.signals

    def observe(
        self, state: Float[Tensor, "*lead channel slot"], attention: Float[Tensor, "*lead query slot"]
    ) -> Float[Tensor, "*lead channel slot"]:
        """State after the queries of `attention`, whose first `overlap` rows were seen before."""
        return self._noted(state, attention, self.overlap, rehearsal=False)

    def rehearse(
        self, state: Float[Tensor, "*lead channel slot"], attention: Float[Tensor, "*lead query slot"]
    ) -> Float[Tensor, "*lead channel slot"]:
        """State after a rehearsal's queries."""
        return self._noted(state, attention, 0, rehearsal=True)

    def expected(
        self,
        state: Float[Tensor, "*lead channel slot"],
        of_second_reading: Callable[[Float[Tensor, "*lead slot"]], Float[Tensor, "*lead slot"]],
    ) -> Float[Tensor, "*lead channel slot"]:
        """State whose peaks of rehearsals are those that a second reading is expected to show."""
        held = [
            _log(of_second_reading(_attention(old).squeeze(-2))).unsqueeze(-2) if part.rehearses else old
            for part, old in zip(self.parts, state.split(self.sizes, dim=-2), strict=True)
        ]
        return torch.cat(held, dim=-2)

    def _noted(self, state: Tensor, attention: Tensor, given: int, rehearsal: bool) -> Tensor:
        held = state.split(self.sizes, dim=-2)
        following = [
            part.observe(old, attention[..., given - part.overlap :, :]) if part.rehearses == rehearsal else old
            for part, old in zip(self.parts, held, strict=True)
        ]
        return following[0] if len(following) == 1 else torch.cat(following, dim=-2)

    def reductions(self, rehearsal: bool) -> tuple[Reduction | None, ...]:
        """What each channel takes from attention, or from that of a rehearsal; () if one must be shown rows."""
        watching = [part for part in self.parts if part.rehearses == rehearsal]
        if any(part.reduction is None for part in watching):
            return ()
        return tuple(part.reduction if part in watching else None for part in self.parts for _ in range(part.size))

    def read(
        self, state: Float[Tensor, "*lead channel slot"], held: Bool[Tensor, "*lead slot"] | None = None
    ) -> Float[Tensor, "*lead slot signal"]:
        """The signals: the channels; if there are several peaks, their sum; then what is around each of these.

        Attention is sharp in some heads and spread in others. With `levels` the mean of each peak over the head's slots
        tells which, and how far above it a token stands: by these, heads that compete for the same slots are compared.

        Args:
            held: False for empty slots, which no mean is over; None if there are none. They stand before the others,
                and in no peak above them.
        """
        if not state.shape[-1]:
            return state.new_zeros(*state.shape[:-2], 0, self.signals)
        own, rest = state[..., self._peaks, :], []
        if self._several:
            rest.append(own.expm1().sum(-2, keepdim=True).log1p_())
        peaks = torch.cat([own, *rest], dim=-2) if rest else own
        if peaks.shape[-2]:
            rest.append(_around(peaks))
        if self.levels:
            if held is None:
                variance, level = torch.var_mean(peaks, -1, correction=0, keepdim=True)
                apart = peaks - level
            else:
                each = (held / held.sum(-1, keepdim=True)).unsqueeze(-1)
                level = peaks @ each
                apart = peaks - level
                variance = apart.square() @ each
            rest += [level.expand_as(peaks), apart / variance.sqrt_().clamp_(min=_SPREAD)]
        channels = [
            _log(values) if part.logarithm else values
            for part, values in zip(self.parts, state.split(self.sizes, dim=-2), strict=True)
        ]
        return torch.cat([*channels, *rest], dim=-2).transpose(-1, -2)

    def assemble(
        self, normalised: Float[Tensor, "*lead slot signal"], age: Int[Tensor, "*lead slot"] | None
    ) -> Float[Tensor, "*lead slot feature"]:
        """The network's input: recency first, if it is read (spec 6)."""
        if not self.recency:
            return normalised
        assert age is not None
        return torch.cat([spectrogram.recency(age), normalised], dim=-1)


def _around(values: Float[Tensor, "*lead slot"]) -> Float[Tensor, "*lead slot"]:
    """The largest value among the neighbours of each slot: digits of a number, words of a name stay together."""
    return max_pool1d(values.reshape(-1, 1, values.shape[-1]), _AROUND, 1, _AROUND // 2).view_as(values)


FEATURE_SETS: dict[str, FeatureSet] = {
    "paper": FeatureSet(Spectrogram()),
    "log": FeatureSet(LogSpectrogram()),
    "extended": FeatureSet(LogSpectrogram(), Peak()),
    "rehearsed": FeatureSet(LogSpectrogram(), Peak(), Echo()),
    "compact": FeatureSet(Mass(), Peak(), recency=False),
    "compact-rehearsed": FeatureSet(Mass(), Peak(), Echo(), recency=False),
    "levelled": FeatureSet(Mass(), Peak(), Echo(), recency=False, levels=True),
}


def feature_set(name: str) -> FeatureSet:
    """The feature set called `name`."""
    if name not in FEATURE_SETS:
        raise ConfigurationError("a known feature set", repr(name), nearest(name, FEATURE_SETS))
    return FEATURE_SETS[name]
