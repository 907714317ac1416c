"""Offline data: episodes in Minari's format, ours or published ones, checked against an environment."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import minari
import numpy as np
from huggingface_hub.errors import HfHubHTTPError
from jaxtyping import Float
from minari.data_collector.episode_buffer import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from experiments.control.simulators import make, scale_of
from experiments.control.trajectories import Trajectory
from namm.errors import ArtefactError, ConfigurationError, NotFoundError
from namm.rl import Scale

# the base of the hub's own error is that of its HTTP library, which Minari lets through
_UNREADABLE: tuple[type[Exception], ...] = (OSError, KeyError, ValueError, *HfHubHTTPError.__bases__)
_NAME = re.compile(r".+-v\d+")


@dataclass(frozen=True)
class Offline:
    """A data set.

    Attributes:
        scale: what its environment's returns are measured against: D4RL's, or else what the data set says.
    """

    name: str
    env_id: str
    trajectories: tuple[Trajectory, ...]
    scale: Scale

    @property
    def steps(self) -> int:
        return sum(map(len, self.trajectories))

    @property
    def returns(self) -> Float[np.ndarray, " episode"]:
        return np.asarray([trajectory.total for trajectory in self.trajectories])

    def statistics(self) -> tuple[Float[np.ndarray, " number"], Float[np.ndarray, " number"]]:
        """Mean and standard deviation of what was observed before an action."""
        seen = np.concatenate([trajectory.observations[:-1] for trajectory in self.trajectories]).astype(np.float64)
        return seen.mean(0).astype(np.float32), (seen.std(0) + 1e-6).astype(np.float32)


def load(source: str | Path, env_id: str) -> Offline:
    """The data set in a folder, or one that Minari knows by that name (and downloads, if it has to).

    Raises:
        NotFoundError: nothing is there under that name.
        ArtefactError: it is there and cannot be read, or holds no step.
        ConfigurationError: it was recorded in another environment.
    """
    spec, saved, trajectories = _read(source)
    recorded = spec.id if spec is not None else "no environment that it names"
    if recorded != env_id:
        raise ConfigurationError(
            f"a data set of {env_id}", f"{source}, recorded in {recorded}", f"Ask for --env {recorded}, or other data."
        )
    if not trajectories:
        raise ArtefactError("a data set with a step at least", f"none in {source}", "Record it again.")
    if (scale := scale_of(env_id)) is None:
        if "expert_return" not in saved:
            raise ConfigurationError(
                "a data set that says what random actions and an expert return",
                f"none in {source}, nor D4RL's",
                "Record one with experiments/control/data.py.",
            )
        scale = Scale(saved["random_return"], saved["expert_return"], "measured with this data")
    return Offline(str(saved.get("dataset_id", source)), env_id, trajectories, scale)


def save(
    folder: Path, name: str, env_id: str, trajectories: Sequence[Trajectory], more: dict[str, Any] | None = None
) -> Path:
    """Write `trajectories` as the Minari data set `name` below `folder`; `MINARI_DATASETS_PATH=folder` finds it.

    Args:
        more: what else its metadata shall say.
    """
    env = make(env_id)
    place = folder.resolve() / name / "data"  # Minari cannot measure the size of a relative one
    place.mkdir(parents=True, exist_ok=True)
    for old in place.iterdir():
        old.unlink()
    storage = MinariStorage.new(place, env.observation_space, env.action_space, env.spec)
    storage.update_metadata({"dataset_id": name, "minari_version": minari.__version__} | (more or {}))
    storage.update_episodes(
        EpisodeBuffer(
            observations=episode.observations,
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=_last(len(episode), episode.terminated),
            truncations=_last(len(episode), not episode.terminated),
        )
        for episode in trajectories
    )
    return folder / name


def _last(steps: int, value: bool) -> np.ndarray:
    flags = np.zeros(steps, bool)
    flags[-1] = value
    return flags


def _read(source: str | Path) -> tuple[Any, dict[str, Any], tuple[Trajectory, ...]]:
    """Environment, metadata and episodes of a data set; episodes without a step are left out."""
    folder = Path(source)
    if not folder.is_dir() and not _NAME.fullmatch(str(source)):
        raise NotFoundError(
            "a folder with a Minari data set, or the name of one such as mujoco/hopper/medium-v0",
            source,
            "Check the path, or record one with experiments/control/data.py.",
        )
    folder = folder / "data" if (folder / "data").is_dir() else folder
    try:
        data = minari.MinariDataset(folder) if folder.is_dir() else minari.load_dataset(str(source), download=True)
        trajectories = tuple(_trajectory(e) for e in data.iterate_episodes() if len(e.rewards))
    except _UNREADABLE as error:
        kind = ArtefactError if folder.is_dir() else NotFoundError
        raise kind(
            "a folder with a Minari data set, or the name of one",
            f"{source} ({error})",
            "Check the name and, for published ones, the network; or record one with experiments/control/data.py.",
        ) from error
    return data.spec.env_spec, data.storage.metadata, trajectories


def _trajectory(episode: Any) -> Trajectory:
    observations, actions, rewards = (
        np.asarray(part, dtype=np.float32) for part in (episode.observations, episode.actions, episode.rewards)
    )
    return Trajectory(observations, actions, rewards, bool(episode.terminations[-1]))
