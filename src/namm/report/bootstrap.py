"""The paired bootstrap: samples are drawn again and again, all policies on the same draw.

Samples that share a context are drawn together, since their results hang together. Tasks are strata: each draw takes
as many contexts from a task as the task has, and the overall figure is the mean over tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

DRAWS = 10_000
_LEVEL = (2.5, 97.5)
_WEIGHTS_AT_ONCE = 1 << 21


@dataclass(frozen=True)
class Resampled:
    """Means of several columns, measured and in each draw. NaN: the column has no value there.

    Attributes:
        mean: over the samples that have a value.
        draws: the same mean in each draw.
        steady: whether at least two contexts have a value; with one, the draws say nothing.
    """

    mean: Float[np.ndarray, "column"]
    draws: Float[np.ndarray, "draw column"]
    steady: Bool[np.ndarray, "column"]

    def ratio(self, above: slice, below: slice) -> Resampled:
        """Columns `above` divided by columns `below`, draw by draw."""
        with np.errstate(divide="ignore", invalid="ignore"):
            mean, draws = self.mean[above] / self.mean[below], self.draws[:, above] / self.draws[:, below]
        mean[~np.isfinite(mean)], draws[~np.isfinite(draws)] = np.nan, np.nan
        return Resampled(mean, draws, self.steady[above] & self.steady[below])


def resample(
    values: Float[np.ndarray, "sample column"], clusters: Sequence[str], draws: int = DRAWS, seed: int = 0
) -> Resampled:
    """Draw the clusters of one task, `draws` times, with replacement.

    Args:
        values: NaN where a sample has no value; such a sample is left out of that column.
        clusters: of each sample; samples with the same name are drawn together.
    """
    names, of = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    there = ~np.isnan(values)
    sums, counts = np.zeros((2, len(names), values.shape[1]))
    np.add.at(sums, of, np.where(there, values, 0.0))
    np.add.at(counts, of, there.astype(float))
    rng, even = np.random.default_rng(seed), np.full(len(names), 1 / len(names))
    out = np.empty((draws, values.shape[1]))
    step = max(1, _WEIGHTS_AT_ONCE // len(names))
    for start in range(0, draws, step):
        piece = out[start : start + step]
        weights = rng.multinomial(len(names), even, size=len(piece)).astype(float)  # draw cluster
        piece[:] = _quotient(weights @ sums, weights @ counts)
    return Resampled(_quotient(sums.sum(0), counts.sum(0)), out, (counts > 0).sum(0) > 1)


def pool(strata: Iterable[Resampled]) -> Resampled:
    """Mean over the strata in which a column has values; takes them one by one, to hold the draws of one only."""
    mean, draws, number, steady = np.zeros(0), np.zeros(0), np.zeros(0), np.ones(0, bool)
    for i, stratum in enumerate(strata):
        if i == 0:
            mean, draws = np.zeros_like(stratum.mean), np.zeros_like(stratum.draws)
            number, steady = np.zeros_like(stratum.mean), np.ones_like(stratum.steady)
        there = ~np.isnan(stratum.mean)
        mean += np.where(there, stratum.mean, 0.0)
        draws += np.where(there, stratum.draws, 0.0)
        number += there
        steady &= stratum.steady | ~there
    return Resampled(_quotient(mean, number), _quotient(draws, np.broadcast_to(number, draws.shape)), steady)


def interval(resampled: Resampled) -> Float[np.ndarray, "2 column"]:
    """Lower and upper end of the 95 % percentile interval; NaN for columns that are not steady."""
    ends = np.full((2, len(resampled.mean)), np.nan)
    whole = ~np.isnan(resampled.draws).any(0) & resampled.steady
    if whole.any():
        ends[:, whole] = np.percentile(resampled.draws[:, whole], _LEVEL, axis=0)
    for column in np.flatnonzero(resampled.steady & ~whole & ~np.isnan(resampled.mean)):
        ends[:, column] = np.nanpercentile(resampled.draws[:, column], _LEVEL)
    return ends


def _quotient(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
