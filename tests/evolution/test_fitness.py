"""Fitness of memories on a language model: what is shared between candidates changes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import pytest
import torch

import namm
from namm import NAMM, NAMMConfig
from namm.errors import ConfigurationError
from namm.evaluation.reader import Method
from namm.evolution import EvolutionConfig
from namm.evolution.fitness import ModelProblem
from namm.evolution.problem import Item
from namm.memory.cache import MemoryCache
from namm.memory.plan import Plan
from namm.memory.rehearsal import rehearsing
from namm.policies import KeepAll, NAMMPolicy
from namm.spectrogram import Statistics
from tests.letters import letters
from tests.zoo import causal_model

FEATURES = ("paper", "compact-rehearsed")
ITEM = Item("train", "passkey", 360, 0, 0.5)


def configuration(features: str = "paper", **objective: object) -> EvolutionConfig:
    return EvolutionConfig(
        memory={"features": features, "update_interval": 64, "per": "layer"},
        objective={"budgets": [0.5], **objective},
        search={"pool": 8, "samples": 1},
        stages=[{"name": "one", "tasks": ["passkey"], "tokens": [360], "generations": 1}],
    )


def problem(features: str = "paper", **objective: object) -> ModelProblem:
    return ModelProblem(configuration(features, **objective), loaded=(causal_model("llama"), letters()))


def population(features: str, count: int) -> NAMM:
    config = NAMMConfig(features=features, update_interval=64, per="layer")
    generator = torch.Generator().manual_seed(5)
    return NAMM.from_vector(torch.randn(count, config.size, generator=generator) * 0.3, config=config)


def one(networks: NAMM, row: int) -> NAMM:
    return NAMM.from_vector(networks.theta[row : row + 1], config=networks.config)


@torch.no_grad()
def likelihood(given: ModelProblem, item: Item, network: NAMM | None) -> float:
    """Of the answer, by a memory that reads everything itself."""
    group = given.group(item)
    (sample,) = group.samples
    model, reader = given.model, given.reader
    policy = KeepAll() if network is None else NAMMPolicy(network)
    method = Method("full" if network is None else "it", item.budget, policy)
    plan = reader.plan(group, reader.prefix(group), method)
    cache = MemoryCache.planned(model.config, (plan,))
    with rehearsing(model.base_model):
        for ids in (group.text, [*group.rest(sample), *sample.answer]):
            logits = model(torch.tensor([ids]), past_key_values=cache).logits
    gold = torch.tensor(sample.answer)
    return float(torch.nn.functional.cross_entropy(logits[0, -len(gold) - 1 : -1], gold))


@pytest.mark.parametrize("features", FEATURES)
def test_many_candidates_at_once_are_each_of_them_alone(features: str) -> None:
    given, networks = problem(features), population(features, 4)
    together = given.measure(ITEM, networks)
    assert len({outcome.nll for outcome in together}) == 4  # they do forget different tokens
    for row, outcome in enumerate(together):
        alone = problem(features).measure(ITEM, one(networks, row))[0]
        assert alone.score == pytest.approx(outcome.score, abs=1e-5)
        assert outcome.nll == pytest.approx(likelihood(given, ITEM, one(networks, row)), abs=1e-4)
        assert 0.45 < outcome.share <= 0.5  # a budget in bytes, the state included


def test_a_batch_of_rows_is_the_rows_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = population("paper", 5)
    alone = problem().measure(ITEM, networks)
    monkeypatch.setattr(ModelProblem, "_rows", lambda self, ready: 3)
    for a, b in zip(problem().measure(ITEM, networks), alone, strict=True):
        assert a.score == pytest.approx(b.score, abs=1e-4)


def test_the_score_lies_between_the_floor_and_the_full_cache() -> None:
    given = problem()
    everything = NAMM.from_vector(torch.zeros(1, 4172))
    (kept,) = given.measure(Item("train", "passkey", 360, 0, None), everything)
    assert kept.score == pytest.approx(1.0, abs=1e-3)
    assert kept.nll == pytest.approx(likelihood(given, ITEM, None), abs=1e-4)
    ready = given.ready(ITEM, NAMMPolicy(everything))
    span = max(ready.floor - ready.full, 0.5)
    (half,) = given.measure(ITEM, population("paper", 1))
    assert half.score == pytest.approx(1 - (half.nll - ready.full) / span, abs=1e-5)


def test_what_is_not_a_number_fails_alone() -> None:
    networks = population("paper", 3)
    theta = networks.theta.clone()
    theta[1] *= 1e30
    broken = problem().measure(ITEM, NAMM.from_vector(theta, config=networks.config))
    honest = problem().measure(ITEM, networks)
    assert broken[1].score != broken[1].score
    assert (broken[0], broken[2]) == (honest[0], honest[2])


def test_the_metric_of_a_task_may_be_the_objective() -> None:
    given = problem(score="metric")
    (kept,) = given.measure(Item("train", "passkey", 360, 0, None), NAMM.from_vector(torch.zeros(1, 4172)))
    assert kept.score == 1.0  # whatever the full cache answers


@pytest.mark.parametrize("features", FEATURES)
def test_statistics_are_those_of_a_memory_that_forgets_nothing(features: str) -> None:
    layout = NAMMConfig(features=features, update_interval=64)
    given = problem(features)
    found = given.statistics(ITEM, layout)
    seen: list[Statistics] = []

    class Watch(NAMMPolicy):
        def score(self, view: namm.policies.View) -> torch.Tensor:
            seen.append(Statistics.of(self.network.feature_set.read(view.state).flatten(0, -2)))
            return torch.zeros_like(view.positions, dtype=torch.float32)

    text = given.group(ITEM).text
    plan = Plan(Watch(NAMM.zeros(layout)), namm.Threshold(0.0), 64, last=len(text))
    with torch.no_grad(), rehearsing(given.model.base_model):
        given.model(torch.tensor([text]), past_key_values=MemoryCache.planned(given.model.config, (plan,)))
    expected = reduce(Statistics.merge, seen)
    assert found.count == expected.count
    torch.testing.assert_close((found.mean, found.var), (expected.mean, expected.var), rtol=1e-3, atol=1e-4)


def lines(file: Path, samples: Sequence[int]) -> Path:
    rows = [{"context": f"Ann has {i} cats. " * 12, "question": "\nCats?", "answers": [str(i)]} for i in samples]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_file_gives_each_split_its_own_samples(tmp_path: Path) -> None:
    file = str(lines(tmp_path / "mine.jsonl", range(8)))
    given = problem()
    gold = {
        split: {given.encoded(Item(split, file, 0, i, 0.5)).sample.gold for i in range(12)}
        for split in ("train", "validation")
    }
    assert gold == {"train": {"0", "1", "2", "4", "5", "6"}, "validation": {"3", "7"}}
    (outcome,) = given.measure(Item("train", file, 0, 0, 0.5), population("paper", 1))
    assert outcome.score == outcome.score


def test_a_task_without_samples(tmp_path: Path) -> None:
    few = str(lines(tmp_path / "few.jsonl", range(2)))
    with pytest.raises(ConfigurationError, match=r"few.jsonl for validation at least; got none. Each 4th sample"):
        problem().encoded(Item("validation", few, 0, 0, 0.5))
    with pytest.raises(namm.NotFoundError, match="passkey"):
        problem().encoded(Item("train", "passky", 360, 0, 0.5))
