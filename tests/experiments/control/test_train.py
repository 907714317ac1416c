"""Training of a Decision Transformer, and of the policies that make its data."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.checkpoints import save_checkpoint
from experiments.control.behaviour import Behaviour, latest, log, snapshot
from experiments.control.behaviour import train as train_behaviour
from experiments.control.data import KINDS, choose, record
from experiments.control.offline import Offline, load
from experiments.control.simulators import make
from experiments.control.train import Recipe, Sampler, describe, train
from namm.errors import ArtefactError, ConfigurationError, RunError
from namm.files import locked
from namm.rl import Decision, Growing, Scale, rollout
from tests.experiments.control.made import trajectories
from tests.harm import HARM, contents, flipped, harmed

RECIPE = Recipe(context=5, width=16, layers=2, updates=30, batch=8, warmup=5)
BEHAVIOUR = Behaviour(steps=1_500, rollout=256, batch=64, epochs=1, width=8)


@pytest.fixture
def data() -> Offline:
    return Offline("toy/medium-v0", "Toy-v0", tuple(trajectories()), Scale(-10.0, 40.0, "the tests"))


def test_windows_are_pieces_of_episodes(data: Offline) -> None:
    about = describe(data, RECIPE)
    windows = Sampler(data, about, RECIPE).batch(0)
    assert windows.states.shape == (8, 5, 4)
    short = 0
    for row in range(8):
        n, t = int(windows.real[row].sum()), int(windows.timesteps[row, 0])
        short += n < 5
        found = [
            e
            for e in data.trajectories
            if len(e) >= t + n and np.array_equal(e.actions[t : t + n], windows.actions[row, :n].numpy())
        ]
        assert len(found) == 1
        left = [found[0].rewards[t + i :].sum() / about.unit for i in range(n)]
        np.testing.assert_allclose(windows.returns[row, :n].numpy(), left, atol=1e-5)
        states = (found[0].observations[t : t + n] - about.mean) / about.deviation
        np.testing.assert_allclose(windows.states[row, :n].numpy(), states, atol=1e-5)
        assert n == min(5, len(found[0]) - t)
    assert short


def test_a_stopped_training_goes_on_as_if_it_had_not_been(data: Offline, tmp_path: Path) -> None:
    losses: list[float] = []
    whole = train(data, tmp_path / "whole", RECIPE, 10, lambda _, loss: losses.append(loss))
    assert losses[-1] < losses[0]

    class Stop(Exception):
        pass

    def stop(done: int, _: float) -> None:
        if done == 20:
            raise Stop

    with pytest.raises(Stop):
        train(data, tmp_path / "parts", RECIPE, 10, stop)
    parts = train(data, tmp_path / "parts", RECIPE, 10)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert parts.about.updates == 30
    assert not (tmp_path / "parts" / "checkpoint.pt").exists()
    again = train(data, tmp_path / "parts", RECIPE, 10, stop)  # done: loaded
    assert again.about == parts.about


def test_a_saved_model_acts_as_it_did(data: Offline, tmp_path: Path) -> None:
    ours = train(data, tmp_path, RECIPE)
    theirs = Decision.load(tmp_path)
    assert theirs.about == ours.about
    a, b = (rollout(d, lambda: make("Toy-v0"), [3], Growing())[0] for d in (ours, theirs))
    np.testing.assert_array_equal(a.actions, b.actions)


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("name", ["checkpoint.pt", "run.json"])
def test_what_is_damaged_is_told_and_stays(data: Offline, tmp_path: Path, name: str, harm: str) -> None:
    def stop(done: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path, RECIPE, every=5, report=stop)
    rng = random.Random(0)
    for _ in range(10 if harm in ("cut", "flipped") else 1):
        whole = (tmp_path / name).read_bytes()
        harmed(tmp_path / name, harm, rng)
        before = contents(tmp_path)
        expected = {"checkpoint.pt": "a whole checkpoint|a file that can be read"}.get(name, "run.json|the run in")
        with pytest.raises((ArtefactError, ConfigurationError), match=expected):
            train(data, tmp_path, RECIPE)
        assert contents(tmp_path) == before
        if harm != "folder":
            (tmp_path / name).write_bytes(whole)


def test_a_checkpoint_of_another_kind(data: Offline, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint.pt", {"config": "{}", "step": 3})
    with pytest.raises(ArtefactError, match="a checkpoint with done, model, optimizer, random, schedule"):
        train(data, tmp_path, RECIPE)


def test_one_process_trains_in_a_folder(data: Offline, tmp_path: Path) -> None:
    for start in (lambda: train(data, tmp_path, RECIPE), lambda: train_behaviour("Toy-v0", tmp_path, BEHAVIOUR)):
        with locked(tmp_path), pytest.raises(ConfigurationError, match=f"no other run in the folder {tmp_path}"):
            start()
    assert contents(tmp_path) == {}


def test_a_folder_holds_one_run(data: Offline, tmp_path: Path) -> None:
    train(data, tmp_path, replace(RECIPE, updates=1))
    with pytest.raises(ConfigurationError, match="with updates = 1, width = 16; got 2, 32"):
        train(data, tmp_path, replace(RECIPE, updates=2, width=32))


def test_a_loss_that_is_no_number(data: Offline, tmp_path: Path) -> None:
    broken = replace(data.trajectories[0], actions=data.trajectories[0].actions * np.nan)
    with pytest.raises(RunError, match="a finite loss"):
        train(replace(data, trajectories=(broken,)), tmp_path, RECIPE)


@pytest.mark.parametrize("options", [{"context": 0}, {"batch": 0}, {"width": 30, "heads": 4}])
def test_recipes_that_cannot_be(options: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError):
        Recipe(**options)


def test_a_behaviour_policy_goes_on_and_is_recorded(tmp_path: Path) -> None:
    run, told = tmp_path / "run", []
    train_behaviour("Toy-v0", run, replace(BEHAVIOUR, steps=700), every=500, report=told.append)
    halfway = latest(run)
    assert 700 <= halfway < 1_500
    with pytest.raises(ConfigurationError, match="with seed = 0; got 1"):
        train_behaviour("Toy-v0", run, BEHAVIOUR, seed=1)
    train_behaviour("Toy-v0", run, BEHAVIOUR, every=500)
    steps = [line["step"] for line in log(run)]
    for kind in ("policy", "normal", "seen"):  # pickles, of which none is opened that was altered
        file = snapshot(run, steps[0])[kind]
        before = file.read_bytes()
        file.write_bytes(flipped(before, 8 * 50))
        with pytest.raises(ArtefactError, match=rf"{file.name} as the log of .* knows it; got another checksum"):
            snapshot(run, steps[0])
        file.write_bytes(before)
    assert steps == sorted(set(steps))
    assert steps[: len(told)] == [line["step"] for line in told]
    assert steps[-1] >= 1_500

    lines: list[str] = []
    made = record(run, "Toy-v0", tmp_path / "data", steps=300, report=lines.append)
    assert tuple(made) == KINDS
    assert len(lines) == 3
    medium, expert = (load(made[kind], "Toy-v0") for kind in ("medium", "expert"))
    assert medium.steps >= 300
    assert expert.scale.expert == pytest.approx(expert.returns.mean(), rel=1e-5)
    assert all(len(t) == 40 and not t.terminated for t in expert.trajectories)
    replayed = load(made["medium-replay"], "Toy-v0")
    assert replayed.steps == sum(line["episodes"] for line in log(run) if line["step"] <= choose(log(run))[0]) * 40


def test_medium_is_a_third_of_the_best() -> None:
    lines = [{"step": s, "return": r} for s, r in ((1, 0.0), (2, 90.0), (3, 160.0), (4, 300.0), (5, 110.0))]
    assert choose(lines) == (2, 4)
    with pytest.raises(ConfigurationError, match="a snapshot with a finished episode"):
        choose([{"step": 1, "return": float("nan")}])
