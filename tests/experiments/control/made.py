"""Episodes of the toy environment, drawn at random."""

from __future__ import annotations

import numpy as np

from experiments.control.trajectories import Trajectory
from tests.rl.toy import ACTION, LIMIT, STATE


def trajectories(lengths: tuple[int, ...] = (30, 12, 1, 40), seed: int = 0) -> list[Trajectory]:
    rng = np.random.default_rng(seed)
    return [
        Trajectory(
            rng.normal(size=(n + 1, STATE)).astype(np.float32),
            rng.uniform(-1, 1, (n, ACTION)).astype(np.float32),
            rng.normal(size=n).astype(np.float32),
            n < LIMIT,
        )
        for n in lengths
    ]
