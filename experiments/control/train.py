"""Training of a Decision Transformer on offline data (Chen et al. 2021, arXiv 2106.01345), with checkpoints.

python experiments/control/train.py --help
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from namm.cli.shared import console, one_message, prepare, progress_bar
from namm.errors import ConfigurationError, RunError
from namm.rl import About, Decision
from namm.rl.decision import FILE
from namm.rl.rollout import longest_episode

sys.path.insert(0, str(Path(__file__).parents[2]))  # the root of the repository: `experiments` is found there

from experiments.checkpoints import open_run, read_checkpoint, save_checkpoint
from experiments.control.offline import Offline, load
from experiments.control.simulators import make

_CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class Recipe:
    """How a Decision Transformer is trained.

    Context, layers, heads, dropout, decay, clip and batch are the paper's for Gym; the model is smaller, and learns
    faster in fewer updates.

    Attributes:
        context: steps of a window, K in the paper.
    """

    context: int = 20
    width: int = 64
    layers: int = 3
    heads: int = 1
    dropout: float = 0.1
    updates: int = 2_000
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: int = 200
    decay: float = 1e-4
    clip: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("context", "width", "layers", "heads", "updates", "batch"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} >= 1", getattr(self, name), "See the help for what it means.")
        if self.width % self.heads:
            raise ConfigurationError(f"a width that {self.heads} heads divide", self.width, "Try --width 64.")


@dataclass(frozen=True)
class Windows:
    """A batch: windows of trajectories, padded at the end, which causal attention does not look at."""

    states: Float[Tensor, "batch step state"]
    actions: Float[Tensor, "batch step action"]
    returns: Float[Tensor, "batch step"]
    timesteps: Int[Tensor, "batch step"]
    real: Bool[Tensor, "batch step"]


class Sampler:
    """Draws windows that start at any step of the data alike often; batch `number` is the same in every run."""

    def __init__(self, data: Offline, about: About, recipe: Recipe) -> None:
        self.recipe = recipe
        lengths = np.asarray([len(t) for t in data.trajectories])
        self.ends = np.cumsum(lengths)
        mean, deviation = (np.asarray(x, dtype=np.float32) for x in (about.mean, about.deviation))
        self.states = np.concatenate([(t.observations[:-1] - mean) / deviation for t in data.trajectories])
        self.actions = np.concatenate([t.actions for t in data.trajectories])
        # return to go: what is still to come, this step's reward included
        left = [t.rewards[::-1].cumsum(dtype=np.float64)[::-1] / about.unit for t in data.trajectories]
        self.returns = np.concatenate(left).astype(np.float32)
        self.times = np.concatenate([np.arange(n) for n in lengths])

    def batch(self, number: int) -> Windows:
        rng = np.random.default_rng((self.recipe.seed, number))
        first = rng.integers(len(self.times), size=self.recipe.batch)
        end = self.ends[np.searchsorted(self.ends, first, side="right")]
        place = first[:, None] + np.arange(self.recipe.context)
        real, place = place < end[:, None], np.minimum(place, end[:, None] - 1)
        states, actions, returns, times = (
            torch.as_tensor(part[place]) for part in (self.states, self.actions, self.returns, self.times)
        )
        return Windows(states, actions, returns, times, torch.as_tensor(real))


def describe(data: Offline, recipe: Recipe) -> About:
    """What a model trained on `data` will say about itself. It is asked for the best return in its data."""
    mean, deviation = data.statistics()
    returns = data.returns
    return About(
        env_id=data.env_id,
        data=data.name,
        episodes=len(returns),
        steps=data.steps,
        data_return=float(returns.mean()),
        context=recipe.context,
        target=float(returns.max()),
        unit=max(float(np.abs(returns).max()), 1e-6),
        mean=mean.tolist(),
        deviation=deviation.tolist(),
        scale=data.scale,
        seed=recipe.seed,
    )


def build(data: Offline, recipe: Recipe) -> DecisionTransformerModel:
    """An untrained model for the environment of `data`."""
    env = make(data.env_id)
    limit = max(longest_episode(env), *map(len, data.trajectories), 1)
    env.close()
    torch.manual_seed(recipe.seed)
    config = DecisionTransformerConfig(
        state_dim=env.observation_space.shape[0],
        act_dim=env.action_space.shape[0],
        hidden_size=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        max_ep_len=limit,
        n_positions=1,
        resid_pdrop=recipe.dropout,
        embd_pdrop=recipe.dropout,
        attn_pdrop=recipe.dropout,
        bos_token_id=None,
        eos_token_id=None,
    )
    return DecisionTransformerModel(config)


def loss_of(model: DecisionTransformerModel, windows: Windows) -> Tensor:
    """Mean squared error of the actions."""
    out = model(
        states=windows.states,
        actions=windows.actions,
        returns_to_go=windows.returns[..., None],
        timesteps=windows.timesteps,
    )
    return (out.action_preds - windows.actions)[windows.real].square().mean()


def train(
    data: Offline,
    folder: Path,
    recipe: Recipe = Recipe(),
    every: int = 250,
    report: Callable[[int, float], None] = lambda update, loss: None,
) -> Decision:
    """Train on `data`; stopped, the same call goes on from the last checkpoint as if it had not been.

    Args:
        folder: where the model goes, and checkpoints until then.
        every: updates between two checkpoints.
        report: called with updates done and the mean loss since the last call.

    Raises:
        ConfigurationError: the folder holds another run, or another process trains there.
        ArtefactError: its checkpoint is damaged.
        RunError: the loss is no number.
    """
    now = {"data": data.name, "env_id": data.env_id, "steps": data.steps} | dataclasses.asdict(recipe)
    with open_run(folder, now):
        return Decision.load(folder) if (folder / FILE).exists() else _train(data, folder, recipe, every, report)


def _train(data: Offline, folder: Path, recipe: Recipe, every: int, report: Callable[[int, float], None]) -> Decision:
    about, model = describe(data, recipe), build(data, recipe).train()
    sampler = Sampler(data, about, recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: _rate(n, recipe))
    done = _resume(folder, model, optimizer, schedule)
    losses: list[float] = []
    mean = float("nan")
    while done < recipe.updates:
        loss = loss_of(model, sampler.batch(done))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        schedule.step()
        done += 1
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise RunError("a finite loss", f"{losses[-1]} at update {done}", "Try a smaller --learning-rate.")
        if done % every == 0 or done == recipe.updates:
            mean = float(np.mean(losses))
            losses.clear()
            _save(folder, model, optimizer, schedule, done)
            report(done, mean)
    decision = Decision(model, dataclasses.replace(about, updates=done, loss=mean))
    decision.save(folder)
    (folder / _CHECKPOINT).unlink()
    return decision


def _rate(update: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine down to a tenth."""
    if update < recipe.warmup:
        return (update + 1) / recipe.warmup
    way = (update - recipe.warmup) / max(1, recipe.updates - recipe.warmup)
    return float(0.1 + 0.45 * (1 + np.cos(np.pi * min(1.0, way))))


def _save(folder: Path, model: Any, optimizer: Any, schedule: Any, done: int) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "random": torch.get_rng_state(),
        "done": done,
    }
    save_checkpoint(folder / _CHECKPOINT, state)


def _resume(folder: Path, model: Any, optimizer: Any, schedule: Any) -> int:
    """Updates that were done; 0 without a checkpoint."""
    state = read_checkpoint(folder / _CHECKPOINT, ("model", "optimizer", "schedule", "random", "done"))
    if state is None:
        return 0
    for part, name in ((model, "model"), (optimizer, "optimizer"), (schedule, "schedule")):
        part.load_state_dict(state[name])
    torch.set_rng_state(state["random"])
    return int(state["done"])


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    data: Annotated[str, typer.Option(help="Folder of a Minari data set, or a name that Minari knows.")],
    env: Annotated[str, typer.Option(help="Its environment.")],
    out: Annotated[Path, typer.Option(help="Folder of the model, and of checkpoints until it is done.")],
    context: Annotated[int, typer.Option(help="Steps of a training window, K in the paper.")] = 20,
    updates: Annotated[int, typer.Option(help="Updates of the model.")] = 2_000,
    batch: Annotated[int, typer.Option(help="Windows in an update.")] = 64,
    width: Annotated[int, typer.Option(help="Width of the model.")] = 64,
    layers: Annotated[int, typer.Option(help="Layers of the model.")] = 3,
    heads: Annotated[int, typer.Option(help="Attention heads of a layer.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="The highest.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="The same seed gives the same model on the same machine.")] = 0,
    threads: Annotated[
        int, typer.Option(help="Torch threads, of which so small a model needs no more; 0: torch's choice.")
    ] = 1,
) -> None:
    """Train a Decision Transformer on offline data. Stopped, the same command goes on."""
    prepare(threads)
    recipe = Recipe(
        context=context,
        updates=updates,
        batch=batch,
        width=width,
        layers=layers,
        heads=heads,
        learning_rate=learning_rate,
        seed=seed,
    )
    with progress_bar() as bar:
        line = bar.add_task(str(data), total=updates)

        def show(done: int, loss: float) -> None:
            bar.update(line, completed=done, description=f"{data}: loss {loss:.4f}")

        about = train(load(data, env), out, recipe, report=show).about
    console.print(
        f"{out}: {about.updates:,} updates on {about.steps:,} steps of {about.data}, loss {about.loss:.4f}, "
        f"asked for a return of {about.target:.0f}",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    with one_message():
        app()
