"""One memory for several models: each candidate is measured on all of them, and its fitness is the mean."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import namm
from namm import NAMM
from namm.evolution import EvolutionConfig, evolve
from namm.evolution.checkpoint import read_log
from namm.evolution.draw import first_items, training_items, validation_items
from namm.evolution.fitness import LanguageProblem, ModelProblem
from namm.evolution.problem import Item
from tests.evolution.planted import same
from tests.letters import letters
from tests.tasks.test_benchmarks import longbench_record, write_lines
from tests.zoo import causal_model

KINDS = ("llama", "qwen2")


def config(*settings: str, names: tuple[str, ...] = KINDS) -> EvolutionConfig:
    return EvolutionConfig(
        models=[{"name": name, "dtype": "float32"} for name in names],
        memory={"features": "compact-rehearsed", "update_interval": 64, "per": "model", "window": 32},
        objective={"budgets": [0.5, 0.25]},
        start={"statistics": 1, "scoring": {"echo": 1.0}},
        search={"space": "scoring", "sigma": 0.3, "population": 4, "samples": 2, "pool": 4},
        stages=[{"name": "one", "tasks": ["passkey"], "tokens": [300, 360], "generations": 2}],
        validation={"samples": 2, "every": 1},
    ).changed(*settings)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[str, ...]:
    """Two models as a user has them: folders."""
    places = []
    for kind in KINDS:
        causal_model(kind).save_pretrained(tmp_path / kind)
        letters().save_pretrained(tmp_path / kind)
        places.append(str(tmp_path / kind))
    return tuple(places)


def test_every_model_gets_the_same_items() -> None:
    for items in (training_items(config(), 0, 3), validation_items(config(), 0)):
        half = len(items) // 2
        assert [item.model for item in items] == [0] * half + [1] * half
        assert [vars(item) | {"model": 0} for item in items[half:]] == [vars(item) for item in items[:half]]
    assert [item.model for item in first_items(config(), 2)] == [0, 0, 1, 1]


def test_fitness_is_the_mean_over_models(tmp_path: Path) -> None:
    loaded = [(causal_model(kind), letters()) for kind in KINDS]
    memory = evolve(config(), tmp_path / "run", models=loaded, curves=False)
    start = NAMM.from_pretrained(tmp_path / "run" / "start")
    alone = [ModelProblem(config(), index, pair) for index, pair in enumerate(loaded)]
    scores = [
        [alone[item.model].measure(item, NAMM.from_vector(start.theta[None], start.mean, start.var, start.config))[0]]
        for item in validation_items(config(), 0)
    ]
    row = read_log(tmp_path / "run")[0]["validated"]["start"]
    means = [sum(s.score for (s,) in part) / 2 for part in (scores[:2], scores[2:])]
    assert row["models"] == pytest.approx(means, abs=1e-6)
    assert means[0] != pytest.approx(means[1], abs=1e-3)
    assert row["fitness"] == pytest.approx(sum(means) / 2, abs=1e-6)
    assert (memory.config.rehearses, memory.config.window, memory.config.per) == ("queries", 32, "model")
    assert memory.config.trained_on.startswith("llama and qwen2; passkey at 300, 360 tokens")


def test_statistics_are_those_of_all_models(tmp_path: Path) -> None:
    loaded = [(causal_model(kind), letters()) for kind in KINDS]
    memory = evolve(config("stages.0.generations=1"), tmp_path, models=loaded, curves=False)
    items = first_items(config(), 1)
    parts = [ModelProblem(config(), i, pair).statistics(items[i], memory.config) for i, pair in enumerate(loaded)]
    both = parts[0].merge(parts[1])
    assert both.mean.tolist() != parts[0].mean.tolist()
    assert (memory.mean.tolist(), memory.var.tolist()) == (both.mean.float().tolist(), both.var.float().tolist())


def test_workers_and_resume_are_as_for_one_model(saved: tuple[str, ...], tmp_path: Path) -> None:
    here = evolve(config(names=saved), tmp_path / "here", curves=False)
    evolve(config("stages.0.generations=1", "workers.count=2", names=saved), tmp_path / "there", curves=False)
    there = evolve(config("workers.count=2", names=saved), tmp_path / "there", resume=True, curves=False)
    assert same(here, there)


def test_a_model_that_is_gone_is_named_and_nothing_is_lost(saved: tuple[str, ...], tmp_path: Path) -> None:
    whole = evolve(config(names=saved), tmp_path / "whole", curves=False)
    evolve(config("stages.0.generations=1", names=saved), tmp_path / "run", curves=False)
    shutil.move(saved[1], tmp_path / "elsewhere")
    with pytest.raises(namm.NotFoundError, match="qwen2"):
        evolve(config(names=saved), tmp_path / "run", resume=True, curves=False)
    assert len(read_log(tmp_path / "run")) == 1
    shutil.move(tmp_path / "elsewhere", saved[1])
    assert same(evolve(config(names=saved), tmp_path / "run", resume=True, curves=False), whole)


def test_another_list_of_models_is_another_run(saved: tuple[str, ...], tmp_path: Path) -> None:
    evolve(config("stages.0.generations=1", names=saved[:1]), tmp_path / "run", curves=False)
    with pytest.raises(namm.ConfigurationError, match=r"models .* where the run has"):
        evolve(config(names=saved), tmp_path / "run", resume=True, curves=False)


def test_texts_that_one_of_the_models_cannot_read(tmp_path: Path) -> None:
    loaded = [(causal_model(kind), letters()) for kind in KINDS]
    longest = loaded[1][0].config.max_position_embeddings
    with pytest.raises(namm.ConfigurationError, match=f"llama reads {longest}; got {longest + 1}"):
        LanguageProblem(config(f"stages.0.tokens=[{longest + 1}]"), loaded)
    file = tmp_path / "mine.jsonl"  # loaded texts come as long as they are
    file.write_text('{"context": "Bo was absent.", "question": "Who was?", "answers": ["Bo"]}\n')
    LanguageProblem(config(f"stages.0.tokens=[{longest + 1}]", f'stages.0.tasks=["{file}"]'), loaded)


def test_files_that_tasks_name_are_in_the_folder_of_the_data(tmp_path: Path) -> None:
    line = '{"context": "Bo was absent.", "question": "Who was?", "answers": ["Bo"]}\n'
    (tmp_path / "mine.jsonl").write_text(line * 4)
    given = config(f"data={tmp_path}", 'stages.0.tasks=["mine.jsonl"]', names=KINDS[:1])
    problem = ModelProblem(given, loaded=(causal_model("llama"), letters()))
    assert problem.encoded(Item("validation", "mine.jsonl", 300, 0, None)).sample.id == "4"
    records = [longbench_record("narrativeqa", number) for number in range(8)]
    write_lines(tmp_path / "narrativeqa.jsonl", records)
    for split, first in (("train", "narrativeqa-0"), ("validation", "narrativeqa-3")):  # of the one split there is
        assert problem.encoded(Item(split, "longbench/narrativeqa", 300, 0, None)).sample.id == first
    for missing in (given.changed("data=null"), given.changed(f"data={tmp_path / 'nowhere'}")):
        with pytest.raises(namm.NotFoundError, match=r"no file .*mine\.jsonl\. .*`data` names the folder"):
            evolve(missing, tmp_path / "run", curves=False)
