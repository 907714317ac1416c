"""Episodes as arrays, and shards of them on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Trajectory:
    """One episode: the observation before each action, and the one after the last.

    Attributes:
        terminated: whether the environment ended it, and not its time limit.
    """

    observations: Float[np.ndarray, "state number"]
    actions: Float[np.ndarray, "step action"]
    rewards: Float[np.ndarray, " step"]
    terminated: bool

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def total(self) -> float:
        """The return: the sum of rewards."""
        return float(self.rewards.sum(dtype=np.float64))


def save_shard(path: Path, trajectories: Sequence[Trajectory]) -> None:
    """Write `trajectories`, in order, to one file."""
    if not trajectories:
        return
    np.savez(
        path,
        observations=np.concatenate([t.observations for t in trajectories]),
        actions=np.concatenate([t.actions for t in trajectories]),
        rewards=np.concatenate([t.rewards for t in trajectories]),
        lengths=np.asarray([len(t) for t in trajectories]),
        terminated=np.asarray([t.terminated for t in trajectories]),
    )


def load_shard(path: Path) -> list[Trajectory]:
    """The trajectories of one file."""
    with np.load(path) as shard:
        lengths, terminated = shard["lengths"], shard["terminated"]
        observations = np.split(shard["observations"], np.cumsum(lengths + 1)[:-1])
        actions = np.split(shard["actions"], np.cumsum(lengths)[:-1])
        rewards = np.split(shard["rewards"], np.cumsum(lengths)[:-1])
    return [Trajectory(*parts) for parts in zip(observations, actions, rewards, map(bool, terminated), strict=True)]
