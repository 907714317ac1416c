"""Where a search begins: zeros, a warm start, or a saved memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

from namm.errors import ConfigurationError, nearest
from namm.evolution.config import WARM, ZEROS, EvolutionConfig, WarmStart
from namm.evolution.draw import first_items
from namm.evolution.executors import Executor
from namm.evolution.problem import Item, Problem
from namm.network import NAMM, NAMMConfig
from namm.policies import NAMMPolicy, resolve
from namm.spectrogram import Statistics


def start_memory(config: EvolutionConfig, executor: Executor) -> NAMM:
    """The memory at the origin of the search, with normalisation statistics."""
    source = config.start.from_
    if source == ZEROS:
        network = NAMM.zeros(layout(config))
        items = first_items(config, config.start.statistics)
        parts = executor.map(_statistics, [(item, network.config) for item in items])
        seen = reduce(Statistics.merge, parts, Statistics.empty(network.feature_set.signals))
        network = network.with_statistics(seen.mean, seen.var)
    elif source == WARM:
        warm = config.start.warm
        items = first_items(config, warm.samples, warm.tokens)
        (network,) = executor.map(_warm, [(layout(config), items, warm)])
    else:
        network = _saved(config)
    return _weighted(network, config.start.scoring, config.start.bias)


def layout(config: EvolutionConfig) -> NAMMConfig:
    """The kind of network that `config` evolves."""
    return NAMMConfig(**dict(config.memory), trained_on=description(config))


def description(config: EvolutionConfig) -> str:
    """For the card of the memory."""
    stages = "; then ".join(
        f"{', '.join(s.tasks)} at {', '.join(map(str, s.tokens))} tokens ({s.generations} generations)"
        for s in config.stages
    )
    budgets = ", ".join(b if isinstance(b, str) else f"{b:.0%}" for b in config.objective.budgets)
    search, models = config.search, " and ".join(model.name for model in config.models)
    return (
        f"{models}; {stages}; budgets {budgets}; {search.population} candidates x {search.samples} samples "
        f"of each task a generation, {search.strategy} CMA-ES in the space {search.space!r} "
        f"from {config.start.from_!r}, seed {config.seed}"
    )


def _saved(config: EvolutionConfig) -> NAMM:
    policy = resolve(config.start.from_)
    if not isinstance(policy, NAMMPolicy):
        raise ConfigurationError("a NAMM for start.from", config.start.from_, "Baselines have no parameters to evolve.")
    start, wanted = policy.network, layout(config)
    for name in ("features", "width"):
        if getattr(start.config, name) != getattr(wanted, name):
            raise ConfigurationError(
                f"a start with memory.{name} = {getattr(wanted, name)!r}",
                repr(getattr(start.config, name)),
                f"Set memory.{name} to what {config.start.from_} has, or start at another memory.",
            )
    return NAMM.from_vector(start.theta, start.mean, start.var, wanted)


def _weighted(network: NAMM, scoring: dict[str, float], bias: float) -> NAMM:
    """With weights of signals, and a bias, added to the scoring layer: the last parameters (spec 7)."""
    theta, names = network.vector(), network.feature_set.names
    theta[..., -1] += bias
    for name, weight in scoring.items():
        if name not in names:
            raise ConfigurationError(
                f"signals of the features {network.config.features!r} in start.scoring",
                repr(name),
                nearest(name, names),
            )
        theta[..., -1 - len(names) + names.index(name)] += weight
    return NAMM.from_vector(theta, network.mean, network.var, network.config)


def _statistics(problem: Problem, unit: tuple[Item, NAMMConfig]) -> Statistics:
    item, config = unit
    return problem.statistics(item, config)


def _warm(problem: Any, unit: tuple[NAMMConfig, Sequence[Item], WarmStart]) -> NAMM:
    from namm.evolution.pretraining import fit

    return fit(problem, *unit)
