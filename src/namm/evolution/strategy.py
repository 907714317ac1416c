"""CMA-ES by pycma behind three verbs: ask, tell, state.

The state of a strategy is what it was told: replaying it gives the same strategy to the bit, without a pickle.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from namm.errors import NotFoundError

try:
    import cma
except ImportError as error:  # named extra, not a bare traceback
    raise NotFoundError("the package cma", "it is not installed", "Run: pip install 'namm[evolve]'") from error


@dataclass
class CMAES:
    """Covariance matrix adaptation (Hansen, 2016, arXiv 1604.00772), maximising.

        strategy = CMAES(np.zeros(26), sigma=0.065, population=12, seed=0)
        while strategy.generation < 100:
            candidates = strategy.ask()
            strategy.tell(candidates, [fitness(c) for c in candidates])
        strategy.mean

    Args:
        start: mean of the first generation.
        diagonal: adapt variances only; needed in thousands of dimensions.
    """

    start: np.ndarray
    sigma: float
    population: int
    seed: int
    diagonal: bool = False
    told: list[np.ndarray] = field(default_factory=list)  # fitness of each generation, higher is better

    def __post_init__(self) -> None:
        history, self.told = self.told, []
        rng = np.random.default_rng(self.seed)
        options = {
            "popsize": self.population,
            "randn": lambda *shape: rng.standard_normal(shape),
            "seed": np.nan,  # pycma must not touch numpy's global state
            "verbose": -9,
            "CMA_diagonal": self.diagonal,
        }
        self._es = cma.CMAEvolutionStrategy(self.start, self.sigma, options)
        for fitness in history:
            self.tell(self.ask(), fitness)

    @property
    def generation(self) -> int:
        return len(self.told)

    @property
    def mean(self) -> np.ndarray:
        """The mean of the search distribution; the paper's result."""
        return np.asarray(self._es.mean).copy()

    @property
    def step_size(self) -> float:
        return float(self._es.sigma)

    def ask(self) -> np.ndarray:
        """Candidates of this generation, `[population, dimension]`."""
        return np.asarray(self._es.ask())

    def tell(self, candidates: np.ndarray, fitness: np.ndarray) -> None:
        """Fitness of the candidates, higher is better; what is not a number ranks last."""
        fitness = np.asarray(fitness, dtype=float)
        worst = np.nanmin(fitness) if np.isfinite(fitness).any() else 0.0
        ranked = np.where(np.isfinite(fitness), fitness, worst - 1.0)
        self._es.tell(list(candidates), list(-ranked))
        self.told.append(fitness)
