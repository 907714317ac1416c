"""Evolution of memories: CMA-ES over the parameters of a NAMM."""

from namm.evolution.run import EvolutionConfig, Progress, evolve

__all__ = ["EvolutionConfig", "Progress", "evolve"]
