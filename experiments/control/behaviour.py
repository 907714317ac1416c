"""Behaviour policies by PPO, and all that their training saw; `recording.py` makes offline data of them.

Hyper-parameters are those of the PPO paper (arXiv 1707.06347), and rl-baselines3-zoo's for HalfCheetah, with the
rollout divided among eight environments.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from experiments.checkpoints import open_run
from experiments.control.simulators import make
from experiments.control.trajectories import Trajectory, save_shard
from namm.errors import ArtefactError
from namm.files import read, sync_tree
from namm.json_files import add_rows, read_rows

ENVIRONMENTS = 8


@dataclass(frozen=True)
class Behaviour:
    """How PPO learns one environment; `rollout` counts steps of all copies between two updates."""

    steps: int = 1_000_000
    rollout: int = 2048
    batch: int = 64
    epochs: int = 10
    learning_rate: float = 3e-4
    clip: float = 0.2
    gamma: float = 0.99
    gae_lambda: float = 0.95
    entropy: float = 0.0
    value: float = 0.5
    max_grad_norm: float = 0.5
    log_std: float = 0.0
    width: int = 64
    relu: bool = False


BEHAVIOURS = {
    "Hopper-v5": Behaviour(steps=400_000),
    "Walker2d-v5": Behaviour(steps=400_000),
    "HalfCheetah-v5": Behaviour(
        steps=250_000,
        rollout=1024,
        epochs=20,
        learning_rate=2.0633e-5,
        clip=0.1,
        gamma=0.98,
        gae_lambda=0.92,
        entropy=0.000401762,
        value=0.58096,
        max_grad_norm=0.8,
        log_std=-2.0,
        width=256,
        relu=True,
    ),
}


def behaviour_for(env_id: str, steps: int = 0) -> Behaviour:
    """Our choice for an environment, for so many steps if they are given."""
    chosen = BEHAVIOURS.get(env_id, Behaviour())
    return replace(chosen, steps=steps) if steps else chosen


class Recorder(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps every finished episode of an environment, as it was before any normalisation."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.finished: list[Trajectory] = []
        self._observations: list[Any] = []
        self._actions: list[Any] = []
        self._rewards: list[float] = []

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self._observations, self._actions, self._rewards = [observation], [], []
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._observations.append(observation)
        self._actions.append(action)
        self._rewards.append(float(reward))
        if terminated or truncated:
            self.finished.append(
                Trajectory(
                    np.asarray(self._observations, dtype=np.float32),
                    np.asarray(self._actions, dtype=np.float32),
                    np.asarray(self._rewards, dtype=np.float32),
                    terminated,
                )
            )
        return observation, reward, terminated, truncated, info


class Snapshots(BaseCallback):
    """Saves policy, normalisation and what was seen every so many steps, so that a run can go on and look back."""

    def __init__(self, folder: Path, every: int, report: Callable[[dict[str, float]], None]) -> None:
        super().__init__()
        self.folder, self.every, self.report = folder, every, report
        self.started = time.monotonic()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.num_timesteps // self.every > latest(self.folder) // self.every:
            self.save()

    def save(self) -> None:
        """Write a snapshot; the line in the log is written last and makes it count."""
        step = self.num_timesteps
        env = self.model.get_env()
        assert isinstance(env, VecNormalize)
        recorders = [recorder_of(one) for one in env.venv.envs]  # type: ignore[attr-defined]
        seen = [episode for recorder in recorders for episode in recorder.finished]
        save_shard(self.folder / f"seen_{step:09d}.npz", seen)
        self.model.save(self.folder / f"policy_{step:09d}.zip")
        env.save(str(self.folder / f"normal_{step:09d}.pkl"))
        sync_tree(self.folder)
        for recorder in recorders:
            recorder.finished.clear()
        line = {
            "step": step,
            "episodes": len(seen),
            "return": float(np.mean([e.total for e in seen])) if seen else float("nan"),
            "length": float(np.mean([len(e) for e in seen])) if seen else float("nan"),
            "seconds": round(time.monotonic() - self.started, 1),
            "sha256": {file.name: _checksum(file) for file in self.folder.glob(f"*_{step:09d}.*")},
        }
        add_rows(self.folder / "log.jsonl", [line])
        self.report(line)


def recorder_of(env: gym.Env[Any, Any]) -> Recorder:
    """The recorder among the wrappers of an environment."""
    while not isinstance(env, Recorder):
        assert isinstance(env, gym.Wrapper)
        env = env.env
    return env


def log(folder: Path) -> list[dict[str, Any]]:
    """One line per snapshot of a run.

    Raises:
        ArtefactError: a line is damaged.
    """
    return read_rows(folder / "log.jsonl", needs=("step", "episodes", "return", "sha256"))


def snapshot(folder: Path, step: int) -> dict[str, Path]:
    """The files of a snapshot, as "policy", "normal" and, where an episode was finished before it, "seen".

    They are pickles: what was altered since they were written is not opened.

    Raises:
        ArtefactError: one of them is damaged or missing.
    """
    (line,) = [line for line in log(folder) if line["step"] == step]
    for name, checksum in line["sha256"].items():
        if _checksum(folder / name) != checksum:
            raise ArtefactError(f"{name} as the log of {folder} knows it", "another checksum", "Train again.")
    return {name.partition("_")[0]: folder / name for name in line["sha256"]}


def _checksum(file: Path) -> str:
    return hashlib.sha256(read(file, "Train again.")).hexdigest()


def latest(folder: Path) -> int:
    """The step of the last snapshot; 0 without one."""
    lines = log(folder)
    return int(lines[-1]["step"]) if lines else 0


def train(
    env_id: str,
    folder: Path,
    behaviour: Behaviour | None = None,
    seed: int = 0,
    every: int = 50_000,
    report: Callable[[dict[str, float]], None] = lambda line: None,
) -> None:
    """Train PPO on `env_id`; stopped, the same call goes on from the last snapshot (with fresh episodes).

    Args:
        folder: where snapshots go.
        every: steps between two snapshots.
        report: called with each line of the log.

    Raises:
        ConfigurationError: `folder` holds another run (only its steps may grow), or another process trains there.
        ArtefactError: its last snapshot is damaged.
    """
    behaviour = behaviour or behaviour_for(env_id)
    with open_run(folder, {"env": env_id, "seed": seed} | asdict(behaviour), grows=("steps",)):
        _train(env_id, folder, behaviour, seed, every, report)


def _train(
    env_id: str, folder: Path, behaviour: Behaviour, seed: int, every: int, report: Callable[[dict[str, float]], None]
) -> None:
    done = latest(folder)
    env: Any = DummyVecEnv([lambda: Recorder(make(env_id)) for _ in range(ENVIRONMENTS)])
    if done:
        saved = snapshot(folder, done)
        env = VecNormalize.load(str(saved["normal"]), env)
        model = PPO.load(saved["policy"], env=env, device="cpu")
        model.set_random_seed(seed + done)
    else:
        model = ppo(behaviour, VecNormalize(env, gamma=behaviour.gamma), seed)
    if done < behaviour.steps:
        snapshots = Snapshots(folder, every, report)
        model.learn(behaviour.steps - done, callback=snapshots, reset_num_timesteps=not done)
        if latest(folder) < model.num_timesteps:
            snapshots.save()
    env.close()


def ppo(behaviour: Behaviour, env: Any, seed: int) -> PPO:
    """An untrained learner."""
    return PPO(
        "MlpPolicy",
        env,
        learning_rate=behaviour.learning_rate,
        n_steps=behaviour.rollout // ENVIRONMENTS,
        batch_size=behaviour.batch,
        n_epochs=behaviour.epochs,
        gamma=behaviour.gamma,
        gae_lambda=behaviour.gae_lambda,
        clip_range=behaviour.clip,
        ent_coef=behaviour.entropy,
        vf_coef=behaviour.value,
        max_grad_norm=behaviour.max_grad_norm,
        policy_kwargs={
            "log_std_init": behaviour.log_std,
            "activation_fn": nn.ReLU if behaviour.relu else nn.Tanh,
            "net_arch": {"pi": [behaviour.width] * 2, "vf": [behaviour.width] * 2},
        },
        seed=seed,
        device="cpu",
    )
