"""Evolution of memories: CMA-ES over the parameters of a NAMM.

config = EvolutionConfig.preset("embedded").changed("search.population=16")
memory = evolve(config, "runs/mine")
"""

from typing import TYPE_CHECKING

from namm.lazy import names_of

if TYPE_CHECKING:
    from namm.evolution.checkpoint import read_log
    from namm.evolution.config import EvolutionConfig, Stage, Workers
    from namm.evolution.executors import make_executor
    from namm.evolution.fitness import HELD_OUT, ModelProblem
    from namm.evolution.problem import Item, Outcome, Problem
    from namm.evolution.run import Generation, evolve
    from namm.evolution.space import make_space
    from namm.evolution.start import start_memory
    from namm.evolution.strategy import VARIANTS, Strategy

__all__ = [
    "HELD_OUT",
    "VARIANTS",
    "EvolutionConfig",
    "Generation",
    "Item",
    "ModelProblem",
    "Outcome",
    "Problem",
    "Stage",
    "Strategy",
    "Workers",
    "evolve",
    "make_executor",
    "make_space",
    "read_log",
    "start_memory",
]

__getattr__ = names_of(__name__, __file__)
