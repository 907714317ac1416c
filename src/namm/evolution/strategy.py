"""CMA-ES by pycma behind three verbs: ask, tell, state.

    strategy = Strategy("full", 26, sigma=0.065, population=12, seed=0)
    while strategy.generation < 100:
        candidates = strategy.ask()
        strategy.tell(candidates, [fitness(c) for c in candidates])
    strategy.mean

The state of a strategy is what it was told: replaying it gives the same strategy to the bit, without a pickle.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from namm.errors import ConfigurationError, nearest
from namm.packages import package
from namm.version import __version__

VARIANTS = ("full", "diagonal", "vd", "vkd")
_FEWEST_DIMENSIONS = 10  # that the restricted samplers are made for


class Strategy:
    """Covariance matrix adaptation (Hansen, 2016, arXiv 1604.00772), maximising; the first mean is the origin.

    Args:
        variant: what is adapted of the covariance. "full": all of it, O(d^2) numbers. "diagonal": variances (sep-CMA,
            Ros and Hansen, 2008). "vd": a diagonal and one direction (Akimoto, Auger and Hansen, 2014). "vkd": a
            diagonal and k directions, k adapted (Akimoto and Hansen, 2016).
        dimensions: d, of the search space.
        sigma: standard deviation of the first generation.
        population: candidates in a generation.
        seed: the same seed gives the same candidates; numpy's global generator is not touched.

    Raises:
        ConfigurationError: no such variant, or "vd" and "vkd" in fewer than 10 dimensions.
        NotFoundError: the package cma is missing.
    """

    def __init__(self, variant: str, dimensions: int, sigma: float, population: int, seed: int) -> None:
        if variant not in VARIANTS:
            raise ConfigurationError("a variant of CMA-ES", repr(variant), nearest(variant, VARIANTS))
        cma = package("cma", "evolve")
        rng = np.random.default_rng(seed)

        def randn(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape)

        options: dict[str, Any] = {
            "popsize": population,
            "randn": randn,
            "seed": np.nan,  # pycma must not seed numpy's global generator
            "verbose": -9,
            "CMA_diagonal": variant == "diagonal",
        }
        if variant in ("vd", "vkd"):
            if dimensions < _FEWEST_DIMENSIONS:
                raise ConfigurationError(
                    f"{_FEWEST_DIMENSIONS} dimensions or more for {variant!r}", dimensions, 'Use the strategy "full".'
                )
            samplers = package("cma.restricted_gaussian_sampler", "evolve")
            sampler = samplers.GaussVDSampler if variant == "vd" else samplers.GaussVkDSampler
            options = sampler.extend_cma_options(options)
            options["CMA_sampler_options"] = {"randn": randn}  # or it would draw from numpy's global generator
        # one thread: many of them wait for each other where workers keep the cores busy, and round as cores are many
        self._blas = package("threadpoolctl", "evolve").ThreadpoolController()
        with self._one_thread():
            self._es = cma.CMAEvolutionStrategy(np.zeros(dimensions), sigma, options)
        self.population = population
        self.told: list[np.ndarray] = []

    @property
    def generation(self) -> int:
        """Generations told."""
        return len(self.told)

    @property
    def mean(self) -> np.ndarray:
        """The mean of the search distribution, `[dimension]`; the paper's result."""
        return np.asarray(self._es.mean, dtype=float).copy()

    @property
    def step_size(self) -> float:
        """Sigma; VkD keeps a factor of it in its sampler."""
        return float(self._es.sigma * getattr(self._es.sm, "sigma", 1.0))

    def ask(self) -> np.ndarray:
        """Candidates of this generation, `[candidate, dimension]`."""
        with self._one_thread():
            return np.asarray(self._es.ask(), dtype=float)

    def tell(self, candidates: np.ndarray, fitness: Sequence[float] | np.ndarray) -> bool:
        """Fitness of each candidate, higher is better.

        What is not a number ranks last. Where fewer candidates were measured than become parents, or all are equal,
        nothing was learned: the generation counts and the search stays where it is.

        Returns:
            whether the search moved.
        """
        fitness = np.array(fitness, dtype=float)
        self.told.append(fitness)
        finite = np.isfinite(fitness)
        parents = int(self._es.sp.weights.mu)
        if int(finite.sum()) < parents or len(np.unique(fitness[finite])) == 1:
            return False
        ranked = np.where(finite, fitness, fitness[finite].min() - 1.0)
        with self._one_thread():
            self._es.tell(list(candidates), list(-ranked))
        return True

    def _one_thread(self) -> AbstractContextManager[Any]:
        return self._blas.limit(limits=1, user_api="blas")


def versions() -> dict[str, str]:
    """What decides, beside the configuration, which candidates a search draws, down to the last bit."""
    loaded = package("threadpoolctl", "evolve").threadpool_info()
    blas = {f"{x['internal_api']} {x['version']} {x.get('architecture')}" for x in loaded if x["user_api"] == "blas"}
    return {
        "namm": __version__,
        "cma": package("cma", "evolve").__version__,
        "numpy": np.__version__,
        "torch": torch.__version__,
        "blas": ", ".join(sorted(blas)),
        "machine": platform.machine(),
    }


def paired_ranks(scores: np.ndarray) -> np.ndarray:
    """Utility of each candidate from its rank on each sample, in [0, 1].

    Candidates are compared sample by sample, so that a sample with a wide range of scores weighs no more than one
    with a narrow range. Equal scores share the mean of their ranks.

    Args:
        scores: `[sample, candidate]`, higher is better; a candidate with a NaN gets NaN.
    """
    below = (scores[:, :, None] > scores[:, None, :]).sum(-1)
    equal = (scores[:, :, None] == scores[:, None, :]).sum(-1) - 1
    utility = ((below + equal / 2) / max(1, scores.shape[1] - 1)).mean(0)
    return np.where(np.isnan(scores).any(0), np.nan, utility)
