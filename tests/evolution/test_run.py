"""Runs on the planted problem: they find the optimum, keep what they should, and refuse what cannot work."""

import errno
import hashlib
import json
import logging
import math
import os
import random
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import cma
import numpy as np
import pytest
import torch

import namm
from benchmarks.planted import Planted
from namm.evolution import EvolutionConfig, Generation, evolve
from namm.evolution.checkpoint import CHECKPOINT, PREVIOUS, read_log
from namm.evolution.strategy import Strategy
from tests.evolution import killed
from tests.evolution.planted import Broken, same, small
from tests.harm import HARM, contents, harmed


def rows(out: Path) -> list[dict[str, object]]:
    """The log without what a clock says."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "rate", "time")} for row in read_log(out)]


class Stopped(Exception):
    pass


def stop_at(generation: int, progress: Generation) -> None:
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
        memory={"update_interval": 64},
        objective={"budgets": [0.3]},
        validation={"samples": 16, "every": 10},
        search={"strategy": "diagonal", "sigma": 0.2, "population": 16, "samples": 8, "pool": 64},
        stages=[{"name": "march", "tasks": ["march"], "tokens": [256], "generations": 40}],
    )
    seen: list[Generation] = []
    memory = evolve(config, tmp_path, problem=Planted, on_generation=seen.append)
    first = read_log(tmp_path)[0]["validated"]["start"]["fitness"]
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
    log = read_log(whole)
    assert [row["generation"] for row in log] == list(range(1, 8))
    assert [row["stage"] for row in log] == ["one"] * 3 + ["two"] * 4
    # at the start of a stage, every second generation of it, and at its end
    assert [sorted(row["validated"]) for row in log] == [
        ["start"],
        ["best", "mean"],
        ["best", "mean"],
        ["start"],
        ["best", "mean"],
        [],
        ["best", "mean"],
    ]
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
    first = read_log(tmp_path)[0]["validated"]["start"]
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
    assert (tmp_path / "checkpoint.damaged").exists() == (harm != "missing")
    assert same(memory, namm.NAMM.from_pretrained(whole / "memory"))
    assert rows(tmp_path) == rows(whole)
    for name in (CHECKPOINT, PREVIOUS):
        (tmp_path / name).write_text("{")
    with pytest.raises(namm.ArtefactError, match="Start the run again"):
        evolve(small(), tmp_path, resume=True, problem=Planted)


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that was stopped after its fifth generation."""
    out = tmp_path_factory.mktemp("run") / "halfway"
    stopped(out, 5)
    return out


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize(
    "name", ["run.json", CHECKPOINT, PREVIOUS, "log.jsonl", "start/config.json", "start/model.safetensors"]
)
def test_a_damaged_file_is_told_or_does_not_matter(
    whole: Path, halfway: Path, tmp_path: Path, name: str, harm: str
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    for attempt in range(4):
        out = tmp_path / str(attempt)
        shutil.copytree(halfway, out)
        harmed(out / name, harm, rng)
        before = contents(out)
        try:
            memory = evolve(small(), out, resume=True, problem=Planted, curves=False)
        except namm.NammError:
            if (name, harm) != (PREVIOUS, "folder"):  # it is in the way of the next checkpoint, and else of no account
                assert contents(out) == before, seed
        else:
            assert same(memory, namm.NAMM.from_pretrained(whole / "memory")), seed


def test_a_damaged_line_of_the_log_is_named_and_the_log_stays(halfway: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(halfway, out)
    lines = (out / "log.jsonl").read_text().splitlines(keepends=True)
    for line in (lines[1][:50] + "\n", '{"generation": 2}\n', "2\n"):
        (out / "log.jsonl").write_text("".join([lines[0], line, *lines[2:]]))
        before = contents(out)
        with pytest.raises(namm.ArtefactError, match=r"line 2 of .*log.jsonl.*Mend or remove that line"):
            evolve(small(), out, resume=True, problem=Planted)
        assert contents(out) == before
    (out / "log.jsonl").write_text("".join([lines[0], *lines[2:]]))
    evolve(small(), out, resume=True, problem=Planted)
    assert [row["generation"] for row in read_log(out)] == [1, 3, 4, 5, 6, 7]


def test_a_damaged_checkpoint_never_takes_the_place_of_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(tmp_path, 5)
    (tmp_path / CHECKPOINT).write_text("{")
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if target == tmp_path / CHECKPOINT:
            raise Stopped
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Stopped):
        evolve(small(), tmp_path, resume=True, problem=Planted, curves=False)
    monkeypatch.undo()
    evolve(small(), tmp_path, resume=True, problem=Planted, curves=False)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.7, 0.9, 0.98])
def test_a_full_disk_loses_nothing(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    real, calls, most = os.fsync, [0], math.inf

    def full(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] > most:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    evolve(small(), tmp_path / "counted", problem=Planted, curves=False)
    calls, most = [0], int(share * calls[0])
    out = tmp_path / "full"
    with pytest.raises(namm.errors.RunError, match=r"No space left on device.*Make room.*was there before is intact"):
        evolve(small(), out, problem=Planted, curves=False)
    monkeypatch.undo()
    done = len(read_log(out))
    assert [row["generation"] for row in read_log(out)] == list(range(1, done + 1))
    if share >= 0.5:
        assert len(json.loads((out / CHECKPOINT).read_text())["state"]["told"]) in (done - 1, done)
    memory = evolve(small(), out, resume=(out / "run.json").exists(), problem=Planted, curves=False)
    assert same(memory, namm.NAMM.from_pretrained(whole / "memory"))
    assert rows(out) == rows(whole)


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
    with pytest.raises(namm.ConfigurationError, match=r"a run folder of format 2; got .* of none"):
        evolve(small(), tmp_path, resume=True, problem=Planted)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(namm.ArtefactError, match="Mend it"):
        evolve(small(), tmp_path, resume=True, problem=Planted)


def stopped(out: Path, generation: int, *settings: str) -> dict[str, bytes]:
    """A run that was stopped; what its folder holds."""
    with pytest.raises(Stopped):
        evolve(small(*settings), out, problem=Planted, on_generation=partial(stop_at, generation), curves=False)
    return contents(out)


def drawing(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """From the generation `first` on, a search draws what it would not have drawn: by a last bit."""
    ask = Strategy.ask

    def other(strategy: Strategy) -> np.ndarray:
        drawn = ask(strategy)
        return np.nextafter(drawn, np.inf) if strategy.generation >= first else drawn

    monkeypatch.setattr(Strategy, "ask", other)


@pytest.mark.parametrize("first", [0, 4])
def test_a_resume_that_draws_other_candidates_is_refused_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    before, had = stopped(tmp_path, 5), np.__version__
    with monkeypatch.context() as patch:
        drawing(patch, first)
        patch.setattr(np, "__version__", "9.9.9")
        got = re.escape(f"others, under numpy 9.9.9 where it had {had}. Resume it where it ran")
        with pytest.raises(namm.errors.RunError, match=f"drew in its 5 generations.*{got}"):
            evolve(small("stages.1.generations=9"), tmp_path, resume=True, problem=Planted)
    assert contents(tmp_path) == before
    with monkeypatch.context() as patch:
        drawing(patch, first)
        with pytest.raises(namm.errors.RunError, match=rf"under the same versions .*cma {cma.__version__}"):
            evolve(small(), tmp_path, resume=True, problem=Planted)
    assert contents(tmp_path) == before


def test_a_checkpoint_with_the_names_of_before_is_read(whole: Path, tmp_path: Path) -> None:
    stopped(tmp_path, 4)
    for name in (CHECKPOINT, PREVIOUS):
        saved = json.loads((tmp_path / name).read_text())
        for record in saved["state"]["records"].values():
            record["bar"] = record.pop("threshold")
        saved["sha256"] = hashlib.sha256(json.dumps(saved["state"]).encode()).hexdigest()
        (tmp_path / name).write_text(json.dumps(saved))
    evolve(small(), tmp_path, resume=True, problem=Planted, curves=False)
    assert rows(tmp_path) == rows(whole)
    assert same(*(namm.NAMM.from_pretrained(run / "memory") for run in (tmp_path, whole)))


def test_another_start_is_another_search(tmp_path: Path) -> None:
    stopped(tmp_path, 2)
    start = namm.NAMM.from_pretrained(tmp_path / "start")
    namm.NAMM.from_vector(start.theta + 1e-3, start.mean, start.var, start.config).save_pretrained(tmp_path / "start")
    before = contents(tmp_path)
    with pytest.raises(namm.errors.RunError, match="the candidates that the run in"):
        evolve(small(), tmp_path, resume=True, problem=Planted)
    assert contents(tmp_path) == before


def test_other_versions_that_draw_the_same_go_on(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(tmp_path, 5)
    monkeypatch.setattr("namm.evolution.run.versions", lambda: {"cma": "99", "numpy": "98"})
    memory = evolve(small(), tmp_path, resume=True, problem=Planted, curves=False)
    assert same(memory, namm.NAMM.from_pretrained(whole / "memory"))
    assert json.loads((tmp_path / CHECKPOINT).read_text())["state"]["versions"] == {"cma": "99", "numpy": "98"}


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


AT_ONCE = """
import sys
from pathlib import Path
from namm.errors import NammError
from namm.evolution import evolve
from benchmarks.planted import Planted
from tests.evolution import killed
print("ready", flush=True)
sys.stdin.readline()
try:
    evolve(killed.config(), Path(sys.argv[1]), problem=Planted, curves=False)
except NammError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def test_a_folder_has_one_run_at_a_time(tmp_path: Path) -> None:
    out, root = tmp_path / "run", Path(__file__).parents[2]
    command = [sys.executable, "-c", AT_ONCE, str(out)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    running = [subprocess.Popen(command, text=True, cwd=root, **pipes) for _ in range(2)]
    try:
        assert [process.stdout.readline() for process in running] == ["ready\n"] * 2
        for process in running:
            process.stdin.write("go\n")
            process.stdin.flush()
        deadline = time.monotonic() + 120
        while len(read_log(out)) < 3 or all(process.poll() is None for process in running):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (refused,) = [process for process in running if process.poll() is not None]
        told = rf"ConfigurationError: expected no other run in the folder {out}; .*Wait until it ends, or use another"
        assert re.match(told, refused.communicate()[1])
        with pytest.raises(namm.ConfigurationError, match="no other run in the folder"):
            evolve(killed.config(), out, resume=True, problem=Planted)
    finally:
        for process in running:
            process.kill()
            process.communicate()
    evolve(killed.config(), out, resume=True, problem=Planted, curves=False)  # the dead one holds nothing
    assert [row["generation"] for row in read_log(out)] == list(range(1, 101))
