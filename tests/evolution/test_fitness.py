"""Evolution, end to end on a tiny model: it climbs, it checkpoints, and resumed is uninterrupted."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import namm
from namm.evolution import EvolutionConfig, Progress, evolve, run
from namm.evolution.fitness import Referenced, answer_nll, memory_nll, normalised, reference
from namm.evolution.strategy import CMAES
from namm.tasks import Encoded, Sample
from tests.letters import letters
from tests.zoo import causal_model, ids

SMALL = {
    "tokens": (360,), "update_interval": 64, "generations": 4, "population": 4, "samples": 2, "pool": 4,
    "validation": 2, "validate_every": 2,
}  # fmt: skip


START = np.zeros(10)


def test_the_strategy_climbs_and_resumes_to_the_bit() -> None:
    def climb(strategy: CMAES, generations: int) -> CMAES:
        while strategy.generation < generations:
            points = strategy.ask()
            strategy.tell(points, -((points - 0.3) ** 2).sum(1))
        return strategy

    state = np.random.get_state()[1].copy()
    whole = climb(CMAES(START, 0.2, 8, seed=0), 60)
    assert float(np.abs(whole.mean - 0.3).max()) < 0.02
    part = climb(CMAES(START, 0.2, 8, seed=0), 25)
    resumed = climb(CMAES(START, 0.2, 8, seed=0, told=part.told), 60)
    np.testing.assert_array_equal(resumed.mean, whole.mean)
    assert not np.array_equal(climb(CMAES(START, 0.2, 8, seed=1), 5).mean, climb(CMAES(START, 0.2, 8, seed=0), 5).mean)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # the global generator is not ours to touch


def test_what_is_not_a_number_never_improves_anything() -> None:
    broken, honest = CMAES(np.zeros(4), 0.1, 6, seed=0), CMAES(np.zeros(4), 0.1, 6, seed=0)
    points = broken.ask()
    fitness = np.array([3.0, 1.0, 2.0, 0.5, np.nan, np.nan])
    broken.tell(points, fitness)
    honest.tell(honest.ask(), np.where(np.isnan(fitness), -1.0, fitness))
    np.testing.assert_allclose(broken.mean, honest.mean)


def test_fitness_is_between_its_references() -> None:
    model = causal_model("llama")
    made = Sample("t", "0", "context", "question", ("answer",))
    sample = Encoded(made, tuple(ids(1, 90)[0].tolist()), (), (5, 6), "raw")
    assert answer_nll(model, sample) == pytest.approx(memory_nll(model, sample, namm.NAMM.zeros(), None, 16), abs=1e-4)
    given = reference(model, sample, 16)
    assert given.full == answer_nll(model, sample)
    there = Referenced(sample, full=1.0, floor=3.0)
    assert [normalised(x, there) for x in (1.0, 2.0, 3.0, 4.0)] == [1.0, 0.5, 0.0, -0.5]
    assert normalised(7.0, Referenced(sample, 1.0, 1.0)) == 1.0


def test_a_run_saves_a_memory_and_resumes_where_it_was(tmp_path: Path) -> None:
    given = causal_model("llama"), letters()
    shown: list[Progress] = []
    config = EvolutionConfig(**SMALL)
    memory = evolve(config, tmp_path / "whole", on_generation=shown.append, model=given)
    assert [p.generation for p in shown] == [1, 2, 3, 4]
    assert [p.validation is not None for p in shown] == [False, True, False, True]
    assert memory.config.update_interval == 64
    assert bool((memory.theta[:-26] == 0).all())
    assert bool((memory.theta[-26:] != 0).any())
    assert bool((memory.var > 0).all())

    class Killed(Exception):
        pass

    def kill(progress: Progress) -> None:
        if progress.generation == 3:
            raise Killed

    with pytest.raises(Killed):
        evolve(config, tmp_path / "killed", on_generation=kill, model=given)
    resumed = evolve(config, tmp_path / "killed", resume=True, model=given)
    assert torch.equal(resumed.theta, memory.theta)
    logs = [
        [json.loads(line) for line in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in ("whole", "killed")
    ]
    for row in logs[0] + logs[1]:
        del row["seconds"]
    assert logs[0] == logs[1]


def test_runs_that_cannot_be_started(tmp_path: Path) -> None:
    given = causal_model("llama"), letters()
    config = EvolutionConfig(**SMALL | {"generations": 1})
    with pytest.raises(namm.ConfigurationError, match="a run to resume"):
        evolve(config, tmp_path, resume=True, model=given)
    evolve(config, tmp_path, model=given)
    with pytest.raises(namm.ConfigurationError, match="Pass resume"):
        evolve(config, tmp_path, model=given)
    with pytest.raises(namm.ConfigurationError, match="sigma"):
        evolve(EvolutionConfig(**SMALL | {"sigma": 0.2}), tmp_path, resume=True, model=given)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"tasks": ("haystack",)}, "a task"),
        ({"space": "everything"}, "a search space"),
        ({"population": 2}, "population"),
        ({"samples": 99}, "pool"),
        ({"sigma": float("nan")}, "sigma"),
        ({"generations": 0}, "generations"),
        ({"validation": 0}, "validation"),
        ({"fraction": 2.0}, "fraction"),
        ({"update_interval": 60}, "multiple of 16"),
    ],
)
def test_configurations(values: dict[str, object], match: str) -> None:
    with pytest.raises(namm.ConfigurationError, match=match):
        EvolutionConfig(**SMALL | values)


def test_search_spaces() -> None:
    base = namm.NAMM.from_vector(torch.full((4172,), 2.0))
    assert run.Search(base, "all").dimensions == 4172
    search = run.Search(base, "scoring")
    assert search.dimensions == 26
    vector = search.vector(np.ones(26))
    assert bool((vector[:-26] == 2).all())
    assert bool((vector[-26:] == 1).all())
    np.testing.assert_array_equal(search.point(vector), np.ones(26))


def test_a_run_can_start_at_a_memory(tmp_path: Path) -> None:
    given = causal_model("llama"), letters()
    start = namm.NAMM.from_vector(torch.randn(4172) * 0.1, torch.rand(17), torch.rand(17))
    start.save_pretrained(tmp_path / "start")
    config = EvolutionConfig(**SMALL | {"generations": 1, "tokens": (300, 360), "initial": str(tmp_path / "start")})
    memory = evolve(config, tmp_path / "run", model=given)
    assert torch.equal(memory.theta[:-26], start.theta[:-26])
    assert torch.equal(memory.mean, start.mean)
    assert 0 < float((memory.theta[-26:] - start.theta[-26:]).abs().max()) < 1
