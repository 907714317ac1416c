"""Data sets in D4RL's sense, made from a behaviour run: expert, medium and medium-replay.

python experiments/control/data.py --help
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from namm.cli.shared import console, one_message, prepare, progress_bar
from namm.errors import ConfigurationError

sys.path.insert(0, str(Path(__file__).parents[2]))  # the root of the repository: `experiments` is found there

from experiments.control.behaviour import ENVIRONMENTS, Recorder, behaviour_for, latest, log, snapshot, train
from experiments.control.offline import save
from experiments.control.simulators import make
from experiments.control.trajectories import Trajectory, load_shard

KINDS = ("medium", "medium-replay", "expert")
RANDOM_EPISODES = 100


def choose(lines: list[dict[str, float]]) -> tuple[int, int]:
    """Steps of the medium and of the expert snapshot: the best, and the one nearest to a third of its return.

    Raises:
        ConfigurationError: no snapshot has finished an episode.
    """
    scored = [line for line in lines if not np.isnan(line["return"])]
    if not scored:
        raise ConfigurationError("a snapshot with a finished episode", f"{len(lines)} without", "Train on.")
    best = max(scored, key=lambda line: line["return"])
    before = [line for line in scored if line["step"] <= best["step"]]
    medium = min(before, key=lambda line: abs(line["return"] - best["return"] / 3))
    return int(medium["step"]), int(best["step"])


def play(folder: Path, step: int, env_id: str, steps: int, seed: int) -> list[Trajectory]:
    """Whole episodes of a snapshot that acts as it did in training, `steps` steps of them at least."""
    recorders = [Recorder(make(env_id)) for _ in range(ENVIRONMENTS)]
    copies = iter(recorders)
    saved = snapshot(folder, step)
    env = VecNormalize.load(str(saved["normal"]), DummyVecEnv([lambda: next(copies)] * ENVIRONMENTS))
    env.training = False
    model = PPO.load(saved["policy"], device="cpu")
    model.set_random_seed(seed)
    env.seed(seed)
    seen: Any = env.reset()
    while sum(len(e) for r in recorders for e in r.finished) < steps:
        seen, _, _, _ = env.step(model.predict(seen, deterministic=False)[0])
    env.close()
    return [episode for recorder in recorders for episode in recorder.finished]


def replay(folder: Path, step: int) -> list[Trajectory]:
    """Every episode that training finished up to a snapshot."""
    snapshots = [snapshot(folder, line["step"]) for line in log(folder) if line["step"] <= step]
    return [episode for saved in snapshots if "seen" in saved for episode in load_shard(saved["seen"])]


def play_randomly(env_id: str, episodes: int, seed: int) -> list[Trajectory]:
    """Episodes of actions drawn from the action space."""
    env = Recorder(make(env_id))
    env.action_space.seed(seed)
    for episode in range(episodes):
        env.reset(seed=seed + episode)
        over = False
        while not over:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            over = terminated or truncated
    env.close()
    return env.finished


def record(
    run: Path,
    env_id: str,
    out: Path,
    steps: int = 200_000,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Path]:
    """Write the three data sets of a behaviour run as Minari data sets `NAME/KIND-v0` below `out`.

    Args:
        run: folder of a behaviour run.
        steps: least size of `medium` and `expert`; `medium-replay` is what training saw until `medium`.
        report: called with a line about each.
    """
    medium, expert = choose(log(run))
    name = env_id.rpartition("-v")[0].lower()
    random = float(np.mean([e.total for e in play_randomly(env_id, RANDOM_EPISODES, seed)]))
    best = play(run, expert, env_id, steps, seed)
    known = {"random_return": random, "expert_return": float(np.mean([e.total for e in best]))}
    made = {}
    for kind, step in zip(KINDS, (medium, medium, expert), strict=True):
        if kind == "medium-replay":
            episodes = replay(run, step)
        else:
            episodes = best if kind == "expert" else play(run, step, env_id, steps, seed + 1)
        mean = float(np.mean([e.total for e in episodes]))
        of = {"algorithm_name": "PPO", "behaviour_steps": step, "mean_return": mean} | known
        made[kind] = save(out, f"{name}/{kind}-v0", env_id, episodes, of)
        report(
            f"{name}/{kind}-v0: {len(episodes):,} episodes, {sum(map(len, episodes)):,} steps, mean return {mean:.1f}, "
            f"PPO after {step:,} steps"
        )
    return made


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    env: Annotated[str, typer.Option(help="Environment of Gymnasium: Hopper-v5, HalfCheetah-v5, Walker2d-v5, ...")],
    out: Annotated[Path, typer.Option(help="Folder of data sets; MINARI_DATASETS_PATH=OUT lets Minari find them.")],
    steps: Annotated[int, typer.Option(help="Training steps of the behaviour policy; 0 for our own choice.")] = 0,
    size: Annotated[int, typer.Option(help="Steps of the medium and of the expert data set.")] = 200_000,
    seed: Annotated[int, typer.Option(help="Of the behaviour policy and its episodes.")] = 0,
    threads: Annotated[
        int, typer.Option(help="Torch threads, of which so small a model needs no more; 0: torch's choice.")
    ] = 1,
) -> None:
    """Train a behaviour policy by PPO and record medium, medium-replay and expert data. Stopped, it goes on."""
    prepare(threads)
    behaviour = behaviour_for(env, steps)
    run = out / "behaviour" / env.rpartition("-v")[0].lower()
    with progress_bar() as bar:
        line = bar.add_task(env, total=behaviour.steps, completed=latest(run))

        def show(entry: dict[str, float]) -> None:
            told = f"{env}: return {entry['return']:.0f} of {entry['episodes']:.0f} episodes"
            bar.update(line, completed=entry["step"], description=told)

        train(env, run, behaviour, seed, report=show)
    record(run, env, out, size, seed, lambda text: console.print(text, highlight=False, soft_wrap=True))


if __name__ == "__main__":
    with one_message():
        app()
