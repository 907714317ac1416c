"""Evolution of memories: CMA-ES over the parameters of a NAMM.

config = EvolutionConfig.preset("embedded").changed("search.population=16")
memory = evolve(config, "runs/mine")
"""

from typing import TYPE_CHECKING

from namm.lazy import names_from

if TYPE_CHECKING:
    from namm.evolution.config import EvolutionConfig
    from namm.evolution.problem import Item, Outcome, Problem
    from namm.evolution.run import Progress, evolve

__all__ = ["EvolutionConfig", "Item", "Outcome", "Problem", "Progress", "evolve"]

__getattr__ = names_from(
    __name__,
    {"config": ["EvolutionConfig"], "problem": ["Item", "Outcome", "Problem"], "run": ["Progress", "evolve"]},
)
