"""Configurations: read, changed, saved, and every mistake named."""

from dataclasses import replace
from pathlib import Path

import pytest

import namm
from namm.evolution import EvolutionConfig
from namm.evolution.config import presets
from namm.evolution.draw import first_items, training_items, validation_items
from namm.evolution.start import layout
from namm.policies import builtin_memories
from namm.spectrogram import HOP
from tests.evolution.planted import small


def test_presets_say_what_they_are() -> None:
    assert set(presets()) == {"embedded", "incremental", "paper", "universal"}
    paper = EvolutionConfig.preset("paper")
    assert [(s.tasks[-1].split("/")[1], s.generations) for s in paper.stages] == [
        ("passage_retrieval_en", 300),
        ("dureader", 250),
        ("narrativeqa", 120),
    ]
    assert (paper.search.sigma, paper.search.population, paper.search.samples) == (0.065, 32, 64)
    assert (paper.search.strategy, paper.search.space, paper.start.from_) == ("full", "all", "zeros")
    assert (paper.memory.features, paper.memory.update_interval) == ("paper", 512)
    assert (paper.objective.budgets, paper.objective.score) == (("own",), "metric")
    incremental = EvolutionConfig.preset("incremental")  # of the same shape
    assert [len(stage.tasks) for stage in incremental.stages] == [len(stage.tasks) for stage in paper.stages]
    assert (incremental.objective.budgets, incremental.start, incremental.memory) == (
        ("own",),
        paper.start,
        paper.memory,
    )
    embedded = EvolutionConfig.preset("embedded")
    assert "vartrack" in embedded.stages[0].task_names


@pytest.mark.parametrize("name", sorted(builtin_memories()))
def test_a_shipped_memory_comes_with_the_run_that_makes_it_again(name: str) -> None:
    folder = builtin_memories()[name]
    config, memory = EvolutionConfig.load(folder / "run.json"), namm.NAMM.from_pretrained(folder)
    assert replace(layout(config), trained_on="") == replace(memory.config, trained_on="")
    assert memory.config.trained_on.startswith(config.models[0].name)


def test_a_configuration_of_another_format_says_what_changed(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"format": 1, "model": {"name": "a"}}')
    with pytest.raises(namm.ConfigurationError, match=r"format: 2; got 1\. .*\[\[models\]\].*rehearses"):
        EvolutionConfig.load(tmp_path / "old.json")


def test_files_of_every_kind_and_settings(tmp_path: Path) -> None:
    config = small("seed=3", "start.bias=0.5", 'objective.budgets=[0.25, "own"]', "models.0.name=a/b")
    assert (config.seed, config.start.bias, config.models[0].name) == (3, 0.5, "a/b")
    assert config.objective.budgets == (0.25, "own")
    config.save(tmp_path / "c.json")
    (tmp_path / "c.yaml").write_text((tmp_path / "c.json").read_text())  # JSON is YAML
    assert EvolutionConfig.load(tmp_path / "c.json") == EvolutionConfig.load(tmp_path / "c.yaml") == config
    (tmp_path / "start").mkdir()
    (tmp_path / "c.toml").write_text('seed = 4\n[start]\nfrom = "start"\n[workers]\nray = "auto"\n')
    loaded = EvolutionConfig.load(tmp_path / "c.toml")
    assert loaded.start.from_ == str(tmp_path / "start")  # looked for beside the file
    assert loaded.workers.ray == "auto"
    assert "workers" not in loaded.identity()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("search.population=3", "search.population: greater than or equal to 4; got 3"),
        ("search.sigma=0", "search.sigma: greater than 0"),
        ("search.sigma=NaN", "search.sigma: a finite number"),
        ("search.samples=99", "search.samples <= search.pool (8); got 99"),
        ("search.space=everything", "search.space: 'all', 'scoring'"),
        ("search.strategy=cma", "search.strategy: 'full'"),
        ("search.sgma=1", "Did you mean 'sigma'"),
        ("stages.7.tokens=1", "Known: 0, 1"),
        ("stages.0.generations=0", "stages.generations: greater than or equal to 1"),
        ("stages.0.tokens=[0]", "stages.tokens.0: greater than or equal to 1"),
        ("stages.0.tasks=[]", "stages.tasks: Tuple should have at least 1 item"),
        ("stages=[]", "stages: Tuple should have at least 1 item"),
        ("memory.features=papr", "Did you mean 'paper'"),
        ("memory.asked=window", 'competes=True for queries that ask their "window" only; got competes=False'),
        ("memory.update_interval=60", f"memory.update_interval: a multiple of {HOP}"),
        ("objective.budgets=[1.5]", "a budget above 0 and below 1"),
        ("objective.budgets=[0.5, 0.5]", "budgets that differ"),
        ("validation.samples=0", "validation.samples: greater than or equal to 1"),
        ("workers.threads=0", "workers.threads: greater than or equal to 1"),
        ("format=1", "format: 2; got 1"),
        ("models=[]", "models: Tuple should have at least 1 item"),
        ('models=[{"name": "a"}, {"name": "a"}]', "models that differ; got a, a"),
        ("sigma", "a setting NAME=VALUE"),
    ],
)
def test_mistakes(setting: str, message: str) -> None:
    with pytest.raises(namm.ConfigurationError) as raised:
        small(setting)
    assert message in str(raised.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(namm.NotFoundError, match="take a preset: embedded, incremental, paper"):
        EvolutionConfig.load(tmp_path / "none.toml")
    with pytest.raises(namm.NotFoundError, match="Did you mean 'paper'"):
        EvolutionConfig.preset("papr")
    for name, text, message in (
        ("a.toml", "seed = ", "TOML in"),
        ("a.json", "{", "JSON in"),
        ("b.json", '{"seed": "\\ud800"}', "surrogates"),
        ("c.json", "[" * 10**5, "recursion"),
        ("a.yaml", "a: [", "YAML in"),
        ("c.yaml", "[" * 10**4, "YAML in"),
        ("b.yaml", "- 1", "names and values"),
        ("a.ini", "", "a .toml, .yaml or .json file"),
        ("b.toml", "serch = 1", "Did you mean 'search'"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(namm.ConfigurationError, match=message):
            EvolutionConfig.load(tmp_path / name)
    (tmp_path / "a.toml").write_bytes(b"seed = \xff")
    with pytest.raises(namm.ConfigurationError, match="TOML in"):
        EvolutionConfig.load(tmp_path / "a.toml")


def test_items_are_common_fresh_and_in_equal_parts() -> None:
    config = small("stages.1.tokens=[96, 128]", "search.samples=8")
    items = training_items(config, 1, 5)
    assert items == training_items(config, 1, 5)
    assert items != training_items(config, 1, 6)
    assert {i.split for i in items} == {"train"}
    for task in ("march", "slow"):
        mine = [i for i in items if i.task == task]
        assert len(mine) == len({i.index for i in mine}) == 8  # different samples
        cells = [(i.tokens, i.budget) for i in mine]
        assert {cells.count(cell) for cell in set(cells)} == {2}
        assert len(set(cells)) == 4
    assert validation_items(config, 1) == validation_items(config, 1)
    assert [i.index for i in validation_items(config, 0)] == [0, 1]
    assert training_items(config.changed("seed=1"), 1, 5) != items
    first = first_items(config, 2)
    assert [(i.task, i.index) for i in first] == [("march", 0), ("slow", 0), ("march", 1), ("slow", 1)]
    assert {i.budget for i in first} == {None}
    own = validation_items(small('objective.budgets=["own"]'), 0)
    assert {i.budget for i in own} == {None}


@pytest.mark.parametrize("wrong", ["some", "1.5", "true"])
def test_a_safeguard_that_is_no_share_is_refused_in_words(wrong: str) -> None:
    with pytest.raises(namm.ConfigurationError, match=r'a share in \[0, 1\] or "auto" for memory\.safeguard'):
        small(f"memory.safeguard={wrong}")
    assert small("memory.safeguard=auto").memory.safeguard == "auto"
