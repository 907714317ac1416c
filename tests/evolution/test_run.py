"""Runs on the planted problem: they find the optimum, keep what they should, and refuse what cannot work."""

import errno
import json
import logging
import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import namm
from namm.evolution import EvolutionConfig, Progress, evolve
from namm.evolution.checkpoint import CHECKPOINT, PREVIOUS, read_log
from namm.evolution.planted import Planted
from tests.evolution import killed
from tests.evolution.planted import Broken, same, small


def rows(out: Path) -> list[dict[str, object]]:
    """The log without what a clock says."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "rate", "time")} for row in read_log(out)]


class Stopped(Exception):
    pass


def stop_at(generation: int, progress: Progress) -> None:
    if progress.generation == generation:
        raise Stopped


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run, uninterrupted."""
    out = tmp_path_factory.mktemp("run") / "whole"
    evolve(small(), out, problem=Planted)
    return out


def test_evolution_from_zero_finds_what_matters(tmp_path: Path) -> None:
    config = EvolutionConfig(
        memory={"update_interval": 64}, objective={"budgets": [0.3]}, validation={"samples": 16, "every": 10},
        search={"strategy": "diagonal", "sigma": 0.2, "population": 16, "samples": 8, "pool": 64},
        stages=[{"name": "march", "tasks": ["march"], "tokens": [256], "generations": 40}],
    )  # fmt: skip
    seen: list[Progress] = []
    memory = evolve(config, tmp_path, problem=Planted, on_generation=seen.append)
    first = next(read_log(tmp_path))["validated"]["start"]["fitness"]
    assert first < 0.5  # zeros keep the newest
    assert seen[-1].best_validation is not None
    assert seen[-1].best_validation >= 0.95  # 1 is the optimum
    assert memory.config.update_interval == 64
    assert bool((memory.var > 0).all())


def test_a_run_twice_is_the_same_run(whole: Path, tmp_path: Path) -> None:
    state = np.random.get_state()[1].copy()
    memory = evolve(small(), tmp_path / "again", problem=Planted, curves=False)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    assert rows(tmp_path / "again") == rows(whole)
    assert same(memory, namm.NAMM.from_pretrained(whole / "memory"))
    other = evolve(small("seed=1"), tmp_path / "other", problem=Planted, curves=False)
    assert not same(memory, other)


def test_the_log_and_what_is_kept(whole: Path) -> None:
    log = list(read_log(whole))
    assert [row["generation"] for row in log] == list(range(1, 8))
    assert [row["stage"] for row in log] == ["one"] * 3 + ["two"] * 4
    # at the start of a stage, every second generation of it, and at its end
    assert [sorted(row["validated"]) for row in log] == [
        ["start"], ["best", "mean"], ["best", "mean"], ["start"], ["best", "mean"], [], ["best", "mean"],
    ]  # fmt: skip
    per_generation = [3 * 7, 3 * 7, 3 * 7, 6 * 7, 6 * 7, 6 * 7, 6 * 7]
    validated = [2, 4, 4, 4, 8, 0, 8]
    assert [row["evaluations"] for row in log] == np.cumsum(np.add(per_generation, validated)).tolist()
    assert all(len(v["scores"]) == 4 for v in log[-1]["validated"].values())
    second = [v["fitness"] for row in log[3:] for v in row["validated"].values()]
    assert log[-1]["best_validation"] == max(second)  # another stage's validations do not compare
    for name in ("memory", "mean", "best", "start"):
        assert namm.NAMM.from_pretrained(whole / name).config.update_interval == 32
    assert "march, slow" in namm.NAMM.from_pretrained(whole / "memory").config.trained_on


def test_a_run_is_repeated_from_its_artefact_alone(whole: Path, tmp_path: Path) -> None:
    config = EvolutionConfig.load(whole / "memory" / "run.json")
    assert same(
        evolve(config, tmp_path / "a", problem=Planted, curves=False), namm.NAMM.from_pretrained(whole / "memory")
    )


def test_a_run_may_start_at_a_memory_which_travels_with_it(whole: Path, tmp_path: Path) -> None:
    config = small(
        f"start.from={whole / 'memory'}", "search.space=gains", "search.strategy=diagonal", "search.ranks=true"
    )
    with pytest.raises(namm.ConfigurationError, match='a start with weights for the space "gains"'):
        evolve(config, tmp_path / "none", problem=Planted)  # the scoring space left the attention at zero
    start = namm.NAMM.from_vector(torch.randn(4172) * 0.1, torch.rand(17), torch.rand(17) + 0.1)
    start.save_pretrained(tmp_path / "start")
    config = config.changed(f"start.from={tmp_path / 'start'}")
    memory = evolve(config, tmp_path / "run", problem=Planted, curves=False)
    assert torch.equal(memory.mean, start.mean)  # with its own normalisation
    assert torch.equal(memory.tensors()["w_o"], start.tensors()["w_o"])
    (tmp_path / "start").rename(tmp_path / "gone")
    again = EvolutionConfig.load(tmp_path / "run" / "memory" / "run.json")
    assert same(evolve(again, tmp_path / "again", problem=Planted, curves=False), memory)
    with pytest.raises(namm.ConfigurationError, match=r"a start with memory.width = 16; got 32"):
        evolve(again.changed("memory.width=16"), tmp_path / "wide", problem=Planted)
    with pytest.raises(namm.ConfigurationError, match="Baselines have no parameters"):
        evolve(small("start.from=h2o"), tmp_path / "baseline", problem=Planted)


@pytest.mark.parametrize("features", ["extended", "rehearsed"])
def test_other_features(tmp_path: Path, features: str) -> None:
    memory = evolve(small(f"memory.features={features}", "stages.1.generations=1"), tmp_path, problem=Planted)
    assert memory.config.features == features


def test_a_bias_and_the_own_threshold(tmp_path: Path) -> None:
    config = small("start.bias=0.25", 'objective.budgets=["own"]', "objective.pressure=0.5", "stages.0.generations=1")
    evolve(config, tmp_path, problem=Planted, curves=False)
    assert float(namm.NAMM.from_pretrained(tmp_path / "start").theta[-1]) == 0.25
    first = next(read_log(tmp_path))["validated"]["start"]
    assert (first["fitness"], first["share"]) == (0.5, 1.0)  # all is kept, and paid for


# -- resuming ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generation", [1, 3, 5])
def test_resumed_is_uninterrupted(whole: Path, tmp_path: Path, generation: int) -> None:
    with pytest.raises(Stopped):
        evolve(small(), tmp_path, problem=Planted, on_generation=partial(stop_at, generation))
    memory = evolve(small("workers.cpus_per_worker=3"), tmp_path, resume=True, problem=Planted)
    assert same(memory, namm.NAMM.from_pretrained(whole / "memory"))
    assert rows(tmp_path) == rows(whole)
    told = [json.loads((out / CHECKPOINT).read_text())["state"] for out in (tmp_path, whole)]
    assert told[0] == told[1]


def test_a_finished_run_is_returned_and_may_go_on(whole: Path, tmp_path: Path) -> None:
    short, long = small("stages.1.generations=2"), small()
    evolve(short, tmp_path, problem=Planted)
    before = (tmp_path / CHECKPOINT).read_text()
    evolve(short, tmp_path, resume=True, problem=Planted)
    assert (tmp_path / CHECKPOINT).read_text() == before
    evolve(long, tmp_path, resume=True, problem=Planted)
    told = [json.loads((out / CHECKPOINT).read_text())["state"]["told"] for out in (tmp_path, whole)]
    assert told[0] == told[1]
    with pytest.raises(namm.ConfigurationError, match="at least 7 generations"):
        evolve(short, tmp_path, resume=True, problem=Planted)


@pytest.mark.parametrize("harm", ["truncated", "altered", "missing", "empty"])
def test_a_damaged_checkpoint_costs_one_generation(
    whole: Path, tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Stopped):
        evolve(small(), tmp_path, problem=Planted, on_generation=partial(stop_at, 5))
    newest = tmp_path / CHECKPOINT
    text = newest.read_text()
    if harm == "missing":
        newest.unlink()
    else:
        newest.write_text({"truncated": text[:200], "altered": text.replace("0.", "1.", 1), "empty": ""}[harm])
    with caplog.at_level(logging.WARNING):
        memory = evolve(small(), tmp_path, resume=True, problem=Planted)
    assert "Going on from the previous checkpoint, 4 generations" in caplog.text
    assert same(memory, namm.NAMM.from_pretrained(whole / "memory"))
    assert rows(tmp_path) == rows(whole)
    for name in (CHECKPOINT, PREVIOUS):
        (tmp_path / name).write_text("{")
    with pytest.raises(namm.ArtefactError, match="Start the run again"):
        evolve(small(), tmp_path, resume=True, problem=Planted)


def test_a_full_disk_loses_nothing(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(namm.errors.RunError, match=r"No space left on device.*checkpoint before this one is intact"):
        evolve(small(), tmp_path, problem=Planted)
    monkeypatch.undo()
    assert len(json.loads((tmp_path / CHECKPOINT).read_text())["state"]["told"]) >= 2
    assert same(evolve(small(), tmp_path, resume=True, problem=Planted), namm.NAMM.from_pretrained(whole / "memory"))
    assert rows(tmp_path) == rows(whole)


def test_folders_that_do_not_fit(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(namm.ConfigurationError, match="a run to resume"):
        evolve(small(), tmp_path, resume=True, problem=Planted)
    with pytest.raises(namm.ConfigurationError, match="Pass resume"):
        evolve(small(), whole, problem=Planted)
    with pytest.raises(namm.ConfigurationError, match=r"search.sigma 0.3 where the run has 0.2; stages.1.tokens"):
        evolve(small("search.sigma=0.3", "stages.1.tokens=[64]"), whole, resume=True, problem=Planted)
    with pytest.raises(namm.ConfigurationError, match="threads 2 where the run has 1"):
        evolve(small("workers.threads=2"), whole, resume=True, problem=Planted)
    with pytest.raises(namm.ConfigurationError, match=r"stages.0.generations 4 where the run has 3"):
        evolve(small("stages.0.generations=4"), whole, resume=True, problem=Planted)
    evolve(small(), tmp_path, problem=Planted, curves=False)
    (tmp_path / "run.json").write_text('{"config": {}, "fitness": []}')
    with pytest.raises(namm.ConfigurationError, match=r"a run folder of format 1; got .* of none"):
        evolve(small(), tmp_path, resume=True, problem=Planted)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(namm.ArtefactError, match="Mend it"):
        evolve(small(), tmp_path, resume=True, problem=Planted)


def test_curves_have_each_point_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Stopped):
        evolve(small(), tmp_path, problem=Planted, on_generation=partial(stop_at, 4))
    evolve(small(), tmp_path, resume=True, problem=Planted)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("fitness/mean")] == list(range(1, 8))
    assert [e.step for e in events.Scalars("validation/mean")] == [2, 3, 5, 7]


# -- fitness that tells nothing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "message"),
    [(0.5, "candidates that differ in fitness; got the same for all in 3"), (float("nan"), "NaN for all of them in 3")],
)
def test_a_fitness_that_tells_nothing_ends_the_run(tmp_path: Path, score: float, message: str) -> None:
    with pytest.raises(namm.errors.RunError, match=message):
        evolve(small(), tmp_path, problem=partial(Broken, score=score))
    assert [row["generation"] for row in read_log(tmp_path)] == [1, 2, 3]
    start, mean = (namm.NAMM.from_pretrained(tmp_path / name) for name in ("start", "memory"))
    assert torch.equal(start.theta, mean.theta)  # nothing moved


def test_a_task_without_samples_is_found_before_the_first_generation(tmp_path: Path) -> None:
    with pytest.raises(namm.ConfigurationError, match="a kind of token; got 'polka'"):
        evolve(small('stages.1.tasks=["polka"]'), tmp_path, problem=Planted)
    with pytest.raises(namm.NotFoundError, match="Did you mean 'passkey'"):
        evolve(EvolutionConfig(stages=[{"name": "a", "tasks": ["passkeys"], "generations": 1}]), tmp_path / "named")
    evolve(small("stages.1.generations=1"), tmp_path, problem=Planted, curves=False)  # nothing had begun there


# -- killed --------------------------------------------------------------------------------------------------------


def test_killed_at_ten_moments_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    evolve(killed.config(), tmp_path / "whole", problem=Planted)
    seed = random.SystemRandom().randrange(10**6)
    command = [sys.executable, "-m", "tests.evolution.killed", str(tmp_path / "killed"), "10", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.split() == ["10", "0"], (seed, done.stderr)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole"), seed
    for name in ("memory", "mean", "best"):
        assert same(*(namm.NAMM.from_pretrained(tmp_path / run / name) for run in ("killed", "whole"))), seed
    states = [json.loads((tmp_path / run / CHECKPOINT).read_text())["state"] for run in ("killed", "whole")]
    assert states[0] == states[1], seed
