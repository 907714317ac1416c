"""An evolution run: ask candidates, measure them on common samples, tell, checkpoint."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from namm.errors import ConfigurationError, nearest
from namm.evolution.fitness import Referenced, memory_nll, normalised, reference
from namm.evolution.strategy import CMAES
from namm.memory import attach
from namm.models import DEFAULT, load_model
from namm.network import NAMM, NAMMConfig
from namm.policies import NAMMPolicy, View
from namm.selection import Budget
from namm.spectrogram import HOP, Statistics
from namm.tasks import Encoded, encode, make_sample
from namm.tasks.embedded import SHORTEST, TASKS

SPACES = ("scoring", "all")


@dataclass(frozen=True)
class EvolutionConfig:
    """One run, complete: the same values give the same memory.

    Attributes:
        model: name for `load_model`.
        tasks: tasks whose samples make the fitness, in equal parts.
        tokens: tokens of text in a sample; several lengths take turns.
        fraction: budget under which candidates are compared.
        update_interval: tokens between two updates while reading.
        space: "scoring" evolves the 26 numbers of the scoring layer and leaves the rest at zero, so that the score
            is linear in the features; "all" evolves every parameter.
        initial: a memory to start the search at, with its normalisation; zeros, as in the paper, if left out.
        generations, population, sigma: of CMA-ES.
        samples: common samples for all candidates of a generation, drawn from `pool` ones.
        validation: samples of the validation split on which the mean is measured every `validate_every` generations.
        threads: torch threads; 0 leaves them as they are.
    """

    model: str = DEFAULT
    tasks: tuple[str, ...] = ("passkey", "niah_multikey")
    tokens: tuple[int, ...] = (512,)
    fraction: float = 0.35
    update_interval: int = 64
    space: str = "scoring"
    initial: str | None = None
    generations: int = 40
    population: int = 12
    sigma: float = 0.065
    samples: int = 8
    pool: int = 48
    validation: int = 16
    validate_every: int = 5
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in TASKS:
                raise ConfigurationError("a task", repr(task), nearest(task, TASKS))
        if self.space not in SPACES:
            raise ConfigurationError("a search space", repr(self.space), nearest(self.space, SPACES))
        if not self.tokens or min(self.tokens) < SHORTEST:
            raise ConfigurationError(f"tokens >= {SHORTEST}", self.tokens, "Give the length of the text in a sample.")
        Budget(fraction=self.fraction)  # raises for what is no fraction
        if self.update_interval < HOP or self.update_interval % HOP:
            raise ConfigurationError(f"an update interval that is a multiple of {HOP}", self.update_interval, "Try 64.")
        for name in ("generations", "population", "samples", "pool", "validate_every", "validation"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} >= 1", getattr(self, name), "Give a positive number.")
        if self.population < 4:
            raise ConfigurationError("a population >= 4", self.population, "CMA-ES ranks half of it as parents.")
        if self.samples > self.pool:
            raise ConfigurationError(f"samples <= pool ({self.pool})", self.samples, "Draw fewer or enlarge the pool.")
        if not self.sigma > 0:
            raise ConfigurationError("sigma > 0", self.sigma, "The paper uses 0.065.")


@dataclass(frozen=True)
class Progress:
    """What one generation showed."""

    generation: int
    best: float
    mean: float
    sigma: float
    evaluations: int
    seconds: float
    validation: float | None
    best_validation: float | None


class Search:
    """The part of a NAMM's parameters that evolution changes."""

    def __init__(self, base: NAMM, space: str) -> None:
        scoring = sum(torch.Size(base.config.shapes[name]).numel() for name in ("w_s", "b_s"))
        size = base.config.size
        self.origin = base.theta
        self.free = slice(size - scoring, size) if space == "scoring" else slice(0, size)

    @property
    def dimensions(self) -> int:
        return self.free.stop - self.free.start

    def vector(self, point: np.ndarray) -> torch.Tensor:
        """The full parameter vector of a point of the search space."""
        theta = self.origin.clone()
        theta[self.free] = torch.as_tensor(point, dtype=torch.float32)
        return theta

    def point(self, theta: torch.Tensor) -> np.ndarray:
        """The place of a parameter vector in the search space."""
        return theta[self.free].double().numpy()


def evolve(
    config: EvolutionConfig,
    out: str | Path,
    resume: bool = False,
    on_generation: Callable[[Progress], None] | None = None,
    model: tuple[PreTrainedModel, Any] | None = None,
) -> NAMM:
    """Evolve a memory; returns the mean that did best on the validation split.

    The folder `out` holds `run.json` (the configuration and the fitness of every generation, enough to resume),
    `log.jsonl` (one line for each generation) and `memory/`, the artefact, best so far.

    Args:
        resume: go on with the run in `out`; its configuration must be the same, but for `generations`.
        model: a loaded model and tokenizer, instead of loading `config.model`.

    Raises:
        ConfigurationError: `out` holds another run, or none to resume.
    """
    out = Path(out)
    told, references = _restore(config, out, resume)
    if config.threads:
        torch.set_num_threads(config.threads)
    lm, tokenizer = model or load_model(config.model)
    train = _Pool(config, "train", config.pool, lm, tokenizer, references)
    held_out = _Pool(config, "validation", config.validation, lm, tokenizer, references)
    base = _base(config, lm, train)
    search = Search(base, config.space)
    strategy = CMAES(
        search.point(base.theta), config.sigma, config.population, config.seed, search.dimensions > 500, told
    )
    best_validation, best = _best_so_far(out), None
    out.mkdir(parents=True, exist_ok=True)

    def network(point: np.ndarray) -> NAMM:
        return NAMM.from_vector(search.vector(point), base.mean, base.var, base.config)

    while strategy.generation < config.generations:
        start = time.perf_counter()
        batch = train.draw(config.samples, strategy.generation)
        candidates = strategy.ask()
        fitness = np.array([_fitness(config, lm, network(c), batch) for c in candidates])
        strategy.tell(candidates, fitness)
        validation = None
        if strategy.generation % config.validate_every == 0 or strategy.generation == config.generations:
            card = f"{base.config.trained_on}; generation {strategy.generation}"
            settings = replace(base.config, trained_on=card)
            best = NAMM.from_vector(search.vector(strategy.mean), base.mean, base.var, settings)
            validation = _fitness(config, lm, best, held_out.draw(config.validation, 0))
            if best_validation is None or validation > best_validation:
                best_validation = validation
                best.save_pretrained(out / "memory")
        progress = Progress(
            strategy.generation, float(fitness.max()), float(fitness.mean()), strategy.step_size,
            strategy.generation * config.population * config.samples, time.perf_counter() - start,
            validation, best_validation,
        )  # fmt: skip
        _checkpoint(config, out, strategy, references, progress)
        if on_generation:
            on_generation(progress)
    return NAMM.from_pretrained(out / "memory")


class _Pool:
    """Samples of one split with their references, measured when first drawn and kept in the checkpoint."""

    def __init__(
        self, config: EvolutionConfig, split: str, size: int, model: PreTrainedModel, tokenizer: Any,
        references: dict[str, list[float]],
    ) -> None:  # fmt: skip
        self.config, self.split, self.size = config, split, size
        self.model, self.tokenizer, self.references = model, tokenizer, references

    def draw(self, count: int, generation: int) -> list[Referenced]:
        """The common samples of a generation."""
        rng = random.Random(f"{self.config.seed}/{self.split}/{generation}")
        return [self[index] for index in rng.sample(range(self.size), count)]

    def __getitem__(self, index: int) -> Referenced:
        sample = self.sample(index)
        key = f"{self.split}/{index}"
        if key not in self.references:
            measured = reference(self.model, sample, self.config.update_interval)
            self.references[key] = [measured.full, measured.floor]
        full, floor = self.references[key]
        return Referenced(sample, full, floor)

    def sample(self, index: int) -> Encoded:
        task = self.config.tasks[index % len(self.config.tasks)]
        length = self.config.tokens[index // len(self.config.tasks) % len(self.config.tokens)]
        sample = make_sample(task, self.split, index, length, self.tokenizer, self.config.seed)
        return encode(sample, self.tokenizer)


def _fitness(config: EvolutionConfig, model: PreTrainedModel, memory: NAMM, batch: list[Referenced]) -> float:
    budget = Budget(fraction=config.fraction)
    scores = [
        normalised(memory_nll(model, item.sample, memory, budget, config.update_interval), item) for item in batch
    ]
    return float(np.mean(scores))


@dataclass(frozen=True, repr=False, eq=False)
class _Recorder(NAMMPolicy):
    """A NAMM of zeros, which keeps everything, and the statistics of each update it saw (spec 5)."""

    seen: list[Statistics] = field(default_factory=list)

    def score(self, view: View) -> torch.Tensor:
        self.seen.append(Statistics.of(view.state.transpose(-1, -2).flatten(0, 2).cpu()))
        return super().score(view)


def _base(config: EvolutionConfig, model: PreTrainedModel, pool: _Pool, samples: int = 4) -> NAMM:
    """Where the search starts: the initial memory, or zeros with the statistics of the first training samples."""
    lengths = ", ".join(str(n) for n in config.tokens)
    described = (
        f"{config.model}; {', '.join(config.tasks)} in novels of {lengths} tokens, budget {config.fraction:.0%}; "
        f"{config.population} candidates x {config.samples} samples a generation, seed {config.seed}"
    )
    if config.initial is not None:
        start = NAMM.from_pretrained(config.initial)
        described += f"; started at: {start.config.trained_on}"
        settings = replace(start.config, update_interval=config.update_interval, trained_on=described)
        return NAMM.from_vector(start.theta, start.mean, start.var, settings)
    network = NAMM.zeros(NAMMConfig(update_interval=config.update_interval, trained_on=described))
    recorder = _Recorder(network)
    ids = (pool.sample(index).prompt for index in range(min(samples, pool.size)))
    with torch.no_grad(), attach(model, recorder, update_interval=config.update_interval):
        for prompt in ids:
            model(torch.tensor([prompt], device=model.device), logits_to_keep=1)
    seen = reduce(Statistics.merge, recorder.seen, Statistics.empty(network.feature_set.channels))
    return network.with_statistics(seen.mean, seen.var)


def _restore(config: EvolutionConfig, out: Path, resume: bool) -> tuple[list[np.ndarray], dict[str, list[float]]]:
    file = out / "run.json"
    if not file.exists():
        if resume:
            raise ConfigurationError(f"a run to resume in {out}", "no run.json there", "Start it without resume.")
        return [], {}
    if not resume:
        raise ConfigurationError(
            f"a folder without a run, for {out}", "one that holds a run", "Pass resume, or another folder."
        )
    saved = json.loads(file.read_text())
    now = json.loads(json.dumps(dataclasses.asdict(config)))
    changed = [k for k, v in now.items() if saved["config"].get(k) != v and k not in ("generations", "threads")]
    if changed:
        raise ConfigurationError(
            "the configuration of the run to resume", f"other values of {changed}", "Use another folder."
        )
    return [np.array(f) for f in saved["fitness"]][: config.generations], saved["references"]


def _log(out: Path) -> Iterator[dict[str, Any]]:
    file = out / "log.jsonl"
    if file.exists():
        yield from (json.loads(line) for line in file.read_text().splitlines())


def _best_so_far(out: Path) -> float | None:
    return max((row["validation"] for row in _log(out) if row["validation"] is not None), default=None)


def _checkpoint(
    config: EvolutionConfig, out: Path, strategy: CMAES, references: dict[str, list[float]], progress: Progress
) -> None:
    state = {
        "config": dataclasses.asdict(config),
        "fitness": [[None if np.isnan(x) else x for x in f.tolist()] for f in strategy.told],
        "references": references,
    }
    scratch = out / "run.json.new"
    scratch.write_text(json.dumps(state))
    rows = [row for row in _log(out) if row["generation"] < progress.generation]
    rows.append(dataclasses.asdict(progress))
    (out / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(scratch, out / "run.json")
