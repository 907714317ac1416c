"""Evolution of memories: CMA-ES over the parameters of a NAMM.

config = EvolutionConfig.preset("embedded").changed("search.population=16")
memory = evolve(config, "runs/mine")
"""

from namm.evolution.config import EvolutionConfig
from namm.evolution.problem import Item, Outcome, Problem
from namm.evolution.run import Progress, evolve

__all__ = ["EvolutionConfig", "Item", "Outcome", "Problem", "Progress", "evolve"]
