"""An evolution run: ask candidates, measure them on common samples, tell, validate, checkpoint."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from namm.errors import RunError
from namm.evolution.checkpoint import BEST, MEAN, MEMORY, Checkpoint, Folder, Record, as_told, open_folder
from namm.evolution.config import EvolutionConfig
from namm.evolution.curves import Curves
from namm.evolution.draw import training_items, validation_items
from namm.evolution.executors import Executor, Factory, make_executor
from namm.evolution.problem import Item, Outcome, Problem
from namm.evolution.space import make_space
from namm.evolution.start import start_memory
from namm.evolution.strategy import Strategy, paired_ranks, versions
from namm.network import NAMM

_STANDSTILL = 3  # generations in a row that told nothing


@dataclass(frozen=True)
class Generation:
    """What one generation showed.

    Attributes:
        generation: told so far, over all stages, out of `generations`.
        stage: its name.
        mean: fitness of the mean of the search before this generation moved it, on this generation's samples.
        best: fitness of the best candidate, on the same samples. None where none could be measured.
        share: bytes held over those of a full cache, mean over candidates and samples.
        sigma: step size.
        evaluations: candidates times samples so far, validation included.
        rate: evaluations per second in this generation.
        seconds: that it took.
        validation: fitness of the mean on the validation samples, in generations that are validated.
        best_validation: of the best memory of this stage so far, which is what the run returns.
    """

    generation: int
    generations: int
    stage: str
    mean: float | None
    best: float | None
    share: float | None
    sigma: float
    evaluations: int
    rate: float
    seconds: float
    validation: float | None
    best_validation: float | None


def evolve(
    config: EvolutionConfig,
    out: str | Path,
    resume: bool = False,
    on_generation: Callable[[Generation], None] | None = None,
    models: Sequence[tuple[PreTrainedModel, Any]] | None = None,
    problem: Factory | None = None,
    curves: bool = True,
) -> NAMM:
    """Evolve a memory; returns the one that did best on the validation samples of the last stage.

    `out` is a folder that can be resumed after any end, see `namm.evolution.checkpoint` for what it holds.

    Args:
        resume: go on with the run in `out`; its configuration must be the same, but for the workers, a longer last
            stage and further stages.
        on_generation: called after each generation's checkpoint, the place for a tracker.
        models: those of the configuration, loaded, each with its tokenizer; candidates are then measured in this
            process.
        problem: makes what candidates are measured on, instead of the language model; importable where workers run.
        curves: write TensorBoard curves.

    Raises:
        ConfigurationError: `out` holds another run, none to resume, or one that another process is at.
        ArtefactError: a file of the run to resume is damaged; none was changed.
        RunError: the disk is full, workers die, fitness tells candidates apart no more, or a resumed search draws other
            candidates than it did. What was done is kept.
    """
    factory = problem or _language_problem(config, models)
    with ExitStack() as stack:
        folder = stack.enter_context(open_folder(Path(out), config, resume))
        todo = len(folder.state.told) < config.generations
        executor = (
            stack.enter_context(make_executor(config.workers, factory, here=models is not None)) if todo else None
        )
        run = _Run(config, folder, executor)
        writer = stack.enter_context(Curves(folder.path, folder.rows())) if curves else None
        while run.strategy.generation < config.generations:
            progress, row = run.step()
            if writer:
                writer.add(row)
            if on_generation:
                on_generation(progress)
            run.check_standstill()
    return NAMM.from_pretrained(folder.path / MEMORY)


def _language_problem(config: EvolutionConfig, models: Sequence[tuple[PreTrainedModel, Any]] | None) -> Factory:
    from namm.evolution.fitness import LanguageProblem
    from namm.tasks import find_tasks

    names = (task for stage in config.stages for task in stage.tasks)
    find_tasks(names, config.data)  # a mistake here need not wait for a model
    return partial(LanguageProblem, config, models)


class _Run:
    """The state of a run between two generations."""

    def __init__(self, config: EvolutionConfig, folder: Folder, executor: Executor | None) -> None:
        self.config, self.folder, self.executor = config, folder, executor
        start = folder.load_start()
        if start is None:
            assert executor is not None
            start = start_memory(config, executor)
            folder.begin(start)
        self.start = start
        search = config.search
        self.space = make_space(search.space, start, search.rank, search.directions, config.seed, search.scaled)
        self.strategy = Strategy(search.strategy, self.space.dimensions, search.sigma, search.population, config.seed)
        self.records = dict(folder.state.records)
        self.evaluations = folder.state.evaluations
        self.standstill = 0
        self.drawn, self.versions = "", versions()
        self._replay(folder.state)

    def _replay(self, state: Checkpoint) -> None:
        """Bring the strategy to where it was, and write again the memories that it passes on the way.

        Raises:
            RunError: it draws other candidates than those that `state` tells the fitness of; nothing was written.
        """
        found: dict[str, np.ndarray] = {}
        for told in (*state.told, None):
            done = self.strategy.generation
            records = [(name, r) for name, r in self.records.items() if r.generation == done]
            found |= {name: self.strategy.mean for name, r in records if r.candidate is None}
            if told is None:
                break
            candidates = self.strategy.ask()
            found |= {name: candidates[r.candidate] for name, r in records if r.candidate is not None}
            self._tell(candidates, np.array([math.nan if x is None else x for x in told]))
        if self.drawn != state.drawn:
            raise _other_candidates(self.folder.path, state)
        self.folder.go_on()
        for name, point in found.items():  # being killed may have left a folder half done
            self._keep(name, point)

    def _tell(self, candidates: np.ndarray, fitness: np.ndarray) -> None:
        """Tell the strategy, and add to the hash of what it draws: the candidates, and the mean that it moves to."""
        moved = self.strategy.tell(candidates, fitness)
        self.standstill = 0 if moved else self.standstill + 1
        points = np.stack([*candidates, self.strategy.mean])
        parts = (self.drawn.encode(), points.tobytes(), self.space.theta(points).numpy().tobytes())
        self.drawn = hashlib.sha256(b"".join(parts)).hexdigest()

    # -- one generation ----------------------------------------------------------------------------------------

    def step(self) -> tuple[Generation, dict[str, Any]]:
        """One generation, up to its checkpoint; what it showed, and its row of the log."""
        began, spent = time.perf_counter(), self.evaluations
        generation = self.strategy.generation
        stage, first, last = self._stage(generation)
        validated = {}
        if generation == first:
            self.records = {}
            (validated["start"],) = self._validate(stage, [(MEAN, self.strategy.mean, None)])
        mean = self.strategy.mean
        candidates = self.strategy.ask()
        outcomes = self._measure(training_items(self.config, stage, generation), np.stack([mean, *candidates]))
        fitness = self._fitness(outcomes)
        told = paired_ranks(self._scores(outcomes)[:, 1:]) if self.config.search.ranks else fitness[1:]
        self._tell(candidates, told)
        after = generation + 1
        if (after - first) % self.config.validation.every == 0 or after == last:
            named: list[tuple[str, np.ndarray, int | None]] = [(MEAN, self.strategy.mean, None)]
            if not np.isnan(fitness[1:]).all():
                best = int(np.nanargmax(fitness[1:]))
                named.append((BEST, candidates[best], best))
            validated |= dict(zip([n for n, _, _ in named], self._validate(stage, named), strict=True))
        seconds = time.perf_counter() - began
        progress = Generation(
            after,
            self.config.generations,
            self.config.stages[stage].name,
            _number(fitness[0]),
            _number(np.nanmax(fitness[1:])) if not np.isnan(fitness[1:]).all() else None,
            _number(np.mean([o.share for row in outcomes for o in row])),
            self.strategy.step_size,
            self.evaluations,
            (self.evaluations - spent) / seconds,
            seconds,
            validated[MEAN]["fitness"] if MEAN in validated else None,
            self.records[self._winner()].fitness if self.records else None,
        )
        row = asdict(progress) | {"time": time.time(), "validated": validated}
        done = (*self.folder.state.told, as_told(told))
        self.folder.write(Checkpoint(done, self.records, self.evaluations, self.drawn, self.versions), row)
        return progress, row

    def check_standstill(self) -> None:
        """Whether fitness still tells candidates apart.

        Raises:
            RunError: it did not for three generations.
        """
        if self.standstill < _STANDSTILL:
            return
        told = self.strategy.told[-1]
        if np.isnan(told).all():
            raise RunError(
                "candidates that can be measured",
                f"NaN for all of them in {_STANDSTILL} generations",
                "Check the model in its dtype on these tasks; what was done is kept.",
            )
        raise RunError(
            "candidates that differ in fitness",
            f"the same for all in {_STANDSTILL} generations",
            "Nothing that matters is forgotten, or everything: change objective.budgets, the texts' length against "
            "memory.update_interval, or start.bias; or raise search.sigma.",
        )

    def _stage(self, generation: int) -> tuple[int, int, int]:
        """Index of the stage that `generation` belongs to, its first generation, and that of the next stage."""
        ends = list(accumulate(stage.generations for stage in self.config.stages))
        index = next(i for i, end in enumerate(ends) if generation < end)
        return index, ends[index] - self.config.stages[index].generations, ends[index]

    # -- measuring ---------------------------------------------------------------------------------------------

    def _measure(self, items: list[Item], points: np.ndarray) -> list[list[Outcome]]:
        """Outcome of each point on each item, `[item][point]`."""
        assert self.executor is not None
        theta = self.space.theta(points)
        networks = NAMM.from_vector(theta, self.start.mean, self.start.var, self.start.config)
        self.evaluations += len(items) * len(points)
        return self.executor.map(_measured, [(item, networks) for item in items])

    def _scores(self, outcomes: list[list[Outcome]]) -> np.ndarray:
        """What is maximised, `[item, candidate]`."""
        pressure = self.config.objective.pressure
        return np.array([[o.score - pressure * o.share for o in row] for row in outcomes])

    def _fitness(self, outcomes: list[list[Outcome]]) -> np.ndarray:
        """Fitness of each candidate; NaN for one that failed. Models and tasks have equal numbers of items."""
        return self._scores(outcomes).mean(0)

    # -- validation --------------------------------------------------------------------------------------------

    def _validate(self, stage: int, named: list[tuple[str, np.ndarray, int | None]]) -> list[dict[str, Any]]:
        """Measure memories on the validation items, and keep those that are better than their kind has been."""
        items = validation_items(self.config, stage)
        outcomes = self._measure(items, np.stack([point for _, point, _ in named]))
        of_model = np.split(self._scores(outcomes), len(self.config.models))  # items come model by model
        generation = self.strategy.generation
        rows = []
        for index, (name, point, candidate) in enumerate(named):
            mine = [row[index] for row in outcomes]
            fitness = _number(self._fitness(outcomes)[index])
            found = generation if candidate is None else generation - 1
            if name not in self.records or _better(fitness, self.records[name].fitness):
                self.records[name] = Record(stage, found, candidate, fitness, self._threshold(items, point))
                self._keep(name, point)
            rows.append(
                {
                    "fitness": fitness,
                    "nll": _number(np.mean([o.nll for o in mine])),
                    "share": _number(np.mean([o.share for o in mine])),
                    "scores": [_number(o.score) for o in mine],
                    "models": [_number(scores[:, index].mean()) for scores in of_model],
                }
            )
        return rows

    def _threshold(self, items: list[Item], point: np.ndarray) -> float:
        """The score at which the budgets cut; 0 where a memory's own threshold has decided."""
        assert self.executor is not None
        theta = self.space.theta(point[None])[0]
        memory = NAMM.from_vector(theta, self.start.mean, self.start.var, self.start.config)
        thresholds = self.executor.map(_threshold, [(item, memory) for item in items if item.budget is not None])
        return float(np.mean(thresholds)) if thresholds else 0.0

    def _winner(self) -> str:
        """The kind of memory that validated best."""
        best = self.records.get(BEST)
        return BEST if best is not None and _better(best.fitness, self.records[MEAN].fitness) else MEAN

    def _keep(self, name: str, point: np.ndarray) -> None:
        """Save a memory under its kind and, if it is the best of both, as the run's result."""
        record = self.records[name]
        which = "the mean" if record.candidate is None else f"candidate {record.candidate}"
        trained_on = f"{self.start.config.trained_on}; {which} at generation {record.generation}"
        config = replace(self.start.config, trained_on=trained_on)
        theta = self.space.theta(point[None])[0]
        theta[-1] -= record.threshold  # b_s is the last parameter (spec 7)
        memory = NAMM.from_vector(theta, self.start.mean, self.start.var, config)
        self.folder.save_memory(memory, name)
        if self._winner() == name:
            self.folder.save_memory(memory)


def _other_candidates(path: Path, state: Checkpoint) -> RunError:
    now = versions()
    differ = [f"{n} {now.get(n)} where it had {then}" for n, then in state.versions.items() if now.get(n) != then]
    return RunError(
        f"the candidates that the run in {path} drew in its {len(state.told)} generations, whose fitness is known",
        "others, under " + ("; ".join(differ) or f"the same versions ({', '.join(map(' '.join, now.items()))})"),
        f"Resume it where it ran, with those versions, or start another run from {path / MEMORY} (start.from): "
        "nothing was changed.",
    )


def _measured(problem: Problem, unit: tuple[Item, NAMM]) -> list[Outcome]:
    item, networks = unit
    with torch.no_grad():
        return problem.measure(item, networks)


def _threshold(problem: Problem, unit: tuple[Item, NAMM]) -> float:
    return problem.threshold(*unit)


def _better(new: float | None, old: float | None) -> bool:
    """What could not be measured is no better than anything, and anything is better than it."""
    return new is not None and (old is None or new > old)


def _number(value: float | np.floating[Any] | Tensor) -> float | None:
    """As JSON has it: None for NaN."""
    return None if math.isnan(value) else float(value)
