"""`namm rl data | train | eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from namm.cli.shared import console, prepare, progress_bar
from namm.packages import package

rl = typer.Typer(help="Control: a Decision Transformer that acts under a memory.", no_args_is_help=True)
_THREADS = typer.Option(help="Torch threads; these models are too small for more. 0 for torch's own choice.")


def _prepare(threads: int, *packages: str) -> None:
    """The packages of the extra are there, or one message says which is not."""
    for name in ("gymnasium", *packages):
        package(name, "rl")
    prepare(threads)


@rl.command()
def data(
    env: Annotated[str, typer.Option(help="Environment of Gymnasium: Hopper-v5, HalfCheetah-v5, Walker2d-v5, ...")],
    out: Annotated[Path, typer.Option(help="Folder of data sets; MINARI_DATASETS_PATH=OUT lets Minari find them.")],
    steps: Annotated[int, typer.Option(help="Training steps of the behaviour policy; 0 for our own choice.")] = 0,
    size: Annotated[int, typer.Option(help="Steps of the medium and of the expert data set.")] = 200_000,
    seed: Annotated[int, typer.Option(help="Of the behaviour policy and its episodes.")] = 0,
    threads: Annotated[int, _THREADS] = 1,
) -> None:
    """Train a behaviour policy by PPO and record medium, medium-replay and expert data. Stopped, it goes on."""
    _prepare(threads, "stable_baselines3", "minari", "h5py")
    from namm.rl.behaviour import behaviour_for, latest, train
    from namm.rl.recording import record

    behaviour = behaviour_for(env, steps)
    run = out / "behaviour" / env.rpartition("-v")[0].lower()
    with progress_bar() as bar:
        line = bar.add_task(env, total=behaviour.steps, completed=latest(run))

        def show(entry: dict[str, float]) -> None:
            told = f"{env}: return {entry['return']:.0f} of {entry['episodes']:.0f} episodes"
            bar.update(line, completed=entry["step"], description=told)

        train(env, run, behaviour, seed, report=show)
    record(run, env, out, size, seed, lambda text: console.print(text, highlight=False, soft_wrap=True))


@rl.command()
def train(
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
    threads: Annotated[int, _THREADS] = 1,
) -> None:
    """Train a Decision Transformer on offline data. Stopped, the same command goes on."""
    _prepare(threads, "minari", "h5py")
    from namm.rl.offline import load
    from namm.rl.training import Recipe
    from namm.rl.training import train as run

    recipe = Recipe(
        context=context, updates=updates, batch=batch, width=width, layers=layers, heads=heads,
        learning_rate=learning_rate, seed=seed,
    )  # fmt: skip
    with progress_bar() as bar:
        line = bar.add_task(str(data), total=updates)

        def show(done: int, loss: float) -> None:
            bar.update(line, completed=done, description=f"{data}: loss {loss:.4f}")

        about = run(load(data, env), out, recipe, report=show).about
    console.print(
        f"{out}: {about.updates:,} updates on {about.steps:,} steps of {about.data}, loss {about.loss:.4f}, "
        f"asked for a return of {about.target:.0f}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


@rl.command("eval")
def evaluate(
    model: Annotated[Path, typer.Option(help="Folder of a trained Decision Transformer.")],
    out: Annotated[Path, typer.Option(help="Folder of rows and summary; what is there is not played again.")],
    env: Annotated[str | None, typer.Option(help="Environment; the model's own if left out.")] = None,
    memory: Annotated[
        list[str] | None, typer.Option(help="Memory, several times; all baselines and shipped ones if left out.")
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            help="Bytes as a full cache of so many steps takes, several times; own: a NAMM's own threshold. "
            "The training window if left out."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Episodes of each.")] = 10,
    first_seed: Annotated[int, typer.Option(help="Seed of the first episode.")] = 1000,
    update_interval: Annotated[int, typer.Option(help="Tokens between two updates; a step is three.")] = 48,
    target: Annotated[float | None, typer.Option(help="Return asked for; the best of the data if left out.")] = None,
    beside: Annotated[int, typer.Option(help="Episodes that are played side by side.")] = 10,
    threads: Annotated[int, _THREADS] = 1,
) -> None:
    """Returns under window, full cache and memories at equal bytes. Stopped, the same command goes on."""
    _prepare(threads)
    from namm.rl.decision import Decision
    from namm.rl.evaluation import MEMORIES, contenders, to_markdown
    from namm.rl.evaluation import Progress as Step
    from namm.rl.evaluation import evaluate as run

    decision = Decision.load(model)
    budgets = [int(text) if text.isdecimal() else text for text in budget or [str(decision.about.context)]]
    chosen = contenders(decision, memory or MEMORIES, budgets, update_interval)
    with progress_bar() as bar:
        line = bar.add_task(str(model), total=None)

        def show(step: Step) -> None:
            bar.update(line, completed=step.done, total=step.total, description=step.playing)

        rows = run(decision, out, chosen, range(first_seed, first_seed + seeds), env, target, beside, show)
    mine = [row for row in rows if row["task"] == decision.about.name and row["context"] == decision.about.context]
    console.print(to_markdown(mine), markup=False, highlight=False, soft_wrap=True)
