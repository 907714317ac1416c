"""Data sets in Minari's format: written, found by path and by name, and refused where they do not fit."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from huggingface_hub.errors import HfHubHTTPError

from experiments.control.offline import load, save
from experiments.control.simulators import make, scale_of
from experiments.control.trajectories import load_shard, save_shard
from namm.errors import ArtefactError, ConfigurationError, NotFoundError
from tests.experiments.control.made import trajectories

KNOWN = {"random_return": -5.0, "expert_return": 15.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path, "toy/medium-v0", "Toy-v0", trajectories(), KNOWN)
    return tmp_path


def assert_equal(ours, theirs) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.observations, b.observations)
        np.testing.assert_array_equal(a.actions, b.actions)
        np.testing.assert_array_equal(a.rewards, b.rewards)
        assert a.terminated == b.terminated


def test_what_was_written_is_read(folder: Path) -> None:
    data = load(folder / "toy" / "medium-v0", "Toy-v0")
    assert_equal(data.trajectories, trajectories())
    assert (data.name, data.env_id, data.steps) == ("toy/medium-v0", "Toy-v0", 83)
    seen = np.concatenate([t.observations[:-1] for t in trajectories()])
    np.testing.assert_allclose(data.statistics()[0], seen.mean(0), atol=1e-5)
    np.testing.assert_allclose(data.statistics()[1], seen.std(0), atol=1e-5)
    np.testing.assert_allclose(data.returns, [t.rewards.sum() for t in trajectories()], atol=1e-4)
    assert data.scale.normalised(5.0) == 50.0


def test_minari_finds_it_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    import minari

    assert "toy/medium-v0" in minari.list_local_datasets()
    assert minari.load_dataset("toy/medium-v0").spec.env_spec.id == "Toy-v0"
    assert_equal(load("toy/medium-v0", "Toy-v0").trajectories, trajectories())


def test_a_second_recording_takes_the_place_of_the_first(folder: Path) -> None:
    save(folder, "toy/medium-v0", "Toy-v0", trajectories((3,)), KNOWN)
    assert load(folder / "toy" / "medium-v0", "Toy-v0").steps == 3


def test_data_of_another_environment(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"a data set of Hopper-v5; got .*, recorded in Toy-v0. Ask for --env"):
        load(folder / "toy" / "medium-v0", "Hopper-v5")


def test_data_without_a_scale(folder: Path) -> None:
    save(folder, "toy/plain-v0", "Toy-v0", trajectories())
    with pytest.raises(ConfigurationError, match="says what random actions and an expert return"):
        load(folder / "toy" / "plain-v0", "Toy-v0")


def test_data_that_is_not_there_or_damaged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ArtefactError, match="a folder with a Minari data set"):
        load(folder / "empty", "Toy-v0")
    for failure in (ValueError("no such data set"), *(kind("connection refused") for kind in HfHubHTTPError.__bases__)):
        monkeypatch.setattr("minari.load_dataset", Mock(side_effect=failure))
        with pytest.raises(NotFoundError, match=rf"or the name of one; got no/such-v0 \({failure}\)"):
            load("no/such-v0", "Toy-v0")
    with pytest.raises(NotFoundError, match=r"such as mujoco/hopper/medium-v0; got nowhere\."):
        load("nowhere", "Toy-v0")
    (folder / "toy" / "medium-v0" / "data" / "main_data.hdf5").write_bytes(b"cut off")
    with pytest.raises(ArtefactError, match="a folder with a Minari data set"):
        load(folder / "toy" / "medium-v0", "Toy-v0")


def test_shards(tmp_path: Path) -> None:
    save_shard(tmp_path / "shard.npz", trajectories())
    assert_equal(load_shard(tmp_path / "shard.npz"), trajectories())
    save_shard(tmp_path / "nothing.npz", [])
    assert not (tmp_path / "nothing.npz").exists()


def test_the_scale_of_d4rl() -> None:
    hopper = scale_of("Hopper-v5")
    assert hopper is not None
    assert hopper.normalised(hopper.random) == 0
    assert hopper.normalised(hopper.expert) == 100
    assert scale_of("Swimmer-v5") is None


@pytest.mark.parametrize(
    ("env", "said"),
    [("Hoper-v5", "Did you mean 'Hopper-v5'"), ("No/Such-v0", "an environment"), ("Hopper", "Did you mean Hopper-v5")],
)
@pytest.mark.filterwarnings("ignore:.*latest versioned environment")
def test_unknown_environments(env: str, said: str) -> None:
    with pytest.raises(NotFoundError, match=said):
        make(env)


def test_environments_without_vectors() -> None:
    with pytest.raises(ConfigurationError, match="actions are vectors of real numbers; got CartPole-v1"):
        make("CartPole-v1")


def test_a_missing_simulator_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import gymnasium

    def without(*args: object, **options: object) -> None:
        raise gymnasium.error.DependencyNotInstalled("MuJoCo is not installed")

    monkeypatch.setattr(gymnasium, "make", without)
    with pytest.raises(
        NotFoundError, match=r"the simulator of Hopper-v5; got MuJoCo is .* pip install 'gymnasium\[mujoco\]'"
    ):
        make("Hopper-v5")
