"""Which samples a generation is measured on: a function of the seed, the stage and the generation alone."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

from namm.configuration import OWN
from namm.evolution.config import EvolutionConfig
from namm.evolution.problem import Item


def training_items(config: EvolutionConfig, stage: int, generation: int) -> list[Item]:
    """The common items of all candidates of a generation; the next generation gets others.

    Each task of the stage gives `search.samples` different samples of its pool. They are dealt out over lengths and
    budgets in equal parts, from a place that changes with the generation. Every model gets them all.
    """
    rng = random.Random(f"{config.seed}/train/{stage}/{generation}")
    count, pool = config.search.samples, config.search.pool
    return _deal(config, stage, "train", {t: rng.sample(range(pool), count) for t in _tasks(config, stage)}, rng)


def validation_items(config: EvolutionConfig, stage: int) -> list[Item]:
    """The items that a stage is validated on, always the same."""
    rng = random.Random(f"{config.seed}/validation/{stage}")
    indices = {task: list(range(config.validation.samples)) for task in _tasks(config, stage)}
    return _deal(config, stage, "validation", indices, rng)


def first_items(config: EvolutionConfig, samples: int, tokens: int | None = None) -> list[Item]:
    """The first training samples of every task of any stage, without a budget: to gather statistics, to fit.

    Tasks of later stages are among them, so that one that has no samples is found out at once.
    """
    lengths = {task: stage.tokens for stage in reversed(config.stages) for task in stage.task_names}
    return [
        Item("train", task, tokens or lengths[task][index % len(lengths[task])], index, None, model)
        for model in range(len(config.models))
        for index in range(samples)
        for task in lengths
    ]


def _tasks(config: EvolutionConfig, stage: int) -> tuple[str, ...]:
    return config.stages[stage].task_names


def _deal(
    config: EvolutionConfig, stage: int, split: str, indices: dict[str, list[int]], rng: random.Random
) -> list[Item]:
    budgets = [None if b == OWN else float(b) for b in config.objective.budgets]
    cells = list(itertools.product(config.stages[stage].tokens, budgets))
    items = []
    for task, chosen in indices.items():
        first = rng.randrange(len(cells))
        for place, index in enumerate(chosen, first):
            tokens, budget = cells[place % len(cells)]
            items.append(Item(split, task, tokens, index, budget))
    return [replace(item, model=model) for model in range(len(config.models)) for item in items]
