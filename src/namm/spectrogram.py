"""From attention to token features: the spectrogram and recency of each cached token (spec 3-6).

A token's attention over time is a signal: one value per query. Its short-time Fourier transform tells how much
attention the token receives and how that changes; an exponential moving average over frames turns it into one
vector of fixed size, whatever the length of the text.

Axes: `query` (time), `slot` (place in the cache, oldest first), `channel` (frequency bin). Leading axes are free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

N_FFT = 32
HOP = 16
BINS = N_FFT // 2 + 1
GAMMA = 0.99
RECENCY_DIMS = 8
_RECENCY_BASE = 50_000.0


@lru_cache(maxsize=8)
def _dft_matrix(device: torch.device) -> Float[Tensor, "32 32"]:
    """Hann window and one-sided DFT in one matrix (spec 3).

    Rows 0-16 are the real parts of bins 0-16, rows 17-31 the imaginary parts of bins 1-15; those of bins 0 and
    16 are zero for a real signal.
    """
    t = torch.arange(N_FFT, dtype=torch.float64)
    window = 0.5 - 0.5 * torch.cos(2 * math.pi * t / N_FFT)
    angle = 2 * math.pi * torch.arange(BINS, dtype=torch.float64)[:, None] * t / N_FFT
    rows = torch.cat([torch.cos(angle), torch.sin(angle)[1:-1]]) * window
    return rows.to(device, torch.float32)


def magnitudes(attention: Float[Tensor, "*lead query slot"]) -> Float[Tensor, "*lead frame 17 slot"]:
    """STFT magnitudes over the query axis, frames of 32 queries with hop 16 (spec 3).

    `attention` starts with the 16 queries carried over, so `query = 16 + 16 * frame`.
    """
    *lead, queries, slots = attention.shape
    frames = queries // HOP - 1
    attention = attention.contiguous()
    windows = attention.as_strided(
        (math.prod(lead), frames, N_FFT, slots), (queries * slots, HOP * slots, slots, 1), attention.storage_offset()
    )
    spectrum = torch.matmul(_dft_matrix(attention.device), windows).square_()
    power = spectrum[:, :, :BINS]
    power[:, :, 1:-1] += spectrum[:, :, BINS:]
    return power.sqrt().view(*lead, frames, BINS, slots)


def frame_weights(frames: int, device: torch.device) -> Float[Tensor, " frame"]:
    """Weight of each frame in the moving average, newest last (spec 4)."""
    age = torch.arange(frames - 1, -1, -1, dtype=torch.float64)  # on the CPU: not every device knows float64
    return ((1 - GAMMA**HOP) * GAMMA ** (HOP * age)).to(device, torch.float32)


def moving_average(
    state: Float[Tensor, "*lead 17 slot"],
    attention: Float[Tensor, "*lead query slot"],
    born: Int[Tensor, " slot"] | None = None,
) -> Float[Tensor, "*lead 17 slot"]:
    """The EMA of magnitudes after the frames of `attention` (spec 4); slots that are new enter with a zero state.

    Args:
        state: averages before these queries.
        attention: group-mean attention of the 16 queries carried over and the new ones after them.
        born: first frame that counts for each slot (spec 4, the causal frame mask). Needed only where attention
            can reach a token before it exists; causal attention is zero there by itself.
    """
    spectra = magnitudes(attention)
    frames = spectra.shape[-3]
    weights = frame_weights(frames, attention.device)
    if born is not None:
        frame = torch.arange(frames, device=attention.device)
        spectra = spectra * (frame[:, None, None] >= born)
    new = torch.einsum("f,...fks->...ks", weights, spectra)
    return state * GAMMA ** (HOP * frames) + new


_recency_tables: dict[torch.device, Float[Tensor, "age 8"]] = {}


def recency(age: Int[Tensor, "*lead slot"]) -> Float[Tensor, "*lead slot 8"]:
    """Sinusoidal features of a token's age in tokens, 0 for the newest: 4 sines, then 4 cosines (spec 6)."""
    if age.device.type == "cuda":  # to know how long a table must be, the host would have to wait
        return _sinusoids(age.clamp(min=0))
    oldest = int(age.max()) if age.numel() else 0
    table = _recency_tables.get(age.device)
    if table is None or len(table) <= oldest:
        table = _sinusoids(torch.arange(max(4096, 2 ** math.ceil(math.log2(oldest + 1))))).to(age.device)
        _recency_tables[age.device] = table
    return table[age.clamp(min=0).long()]


def _sinusoids(age: Int[Tensor, "*lead slot"]) -> Float[Tensor, "*lead slot 8"]:
    frequency = _RECENCY_BASE ** (-torch.arange(4, dtype=torch.float64, device=age.device) / 4)
    phase = age.double()[..., None] * frequency
    return torch.cat([phase.sin(), phase.cos()], dim=-1).float()


@dataclass(frozen=True)
class Statistics:
    """Running mean and variance per channel, merged without loss (spec 5)."""

    mean: Float[Tensor, " channel"]
    var: Float[Tensor, " channel"]
    count: int

    @classmethod
    def empty(cls, channels: int = BINS) -> Statistics:
        return cls(torch.zeros(channels), torch.ones(channels), 0)

    @classmethod
    def of(cls, values: Float[Tensor, "token channel"]) -> Statistics:
        """Mean and biased variance of `values` over tokens."""
        return cls(values.mean(0), values.var(0, correction=0), len(values))

    def merge(self, other: Statistics) -> Statistics:
        """The statistics of both sets of tokens together."""
        count = self.count + other.count
        a = self.count / max(count, 1)
        b = 1 - a
        delta = other.mean - self.mean
        return Statistics(a * self.mean + b * other.mean, a * self.var + b * other.var + a * b * delta.square(), count)

    def normalise(self, values: Float[Tensor, "*lead channel"]) -> Float[Tensor, "*lead channel"]:
        return (values - self.mean) / self.var.sqrt().clamp(min=1e-7)
