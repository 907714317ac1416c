"""Returns under contexts of equal bytes: a row for each episode, in a file that goes on where it was.

python experiments/control/evaluate.py --help
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import mujoco
import numpy as np
import typer

from namm.cli.shared import console, one_message, prepare, progress_bar
from namm.errors import ConfigurationError
from namm.evaluation import open_folder, provenance, read_rows
from namm.files import write
from namm.policies import BASELINES, MemoryPolicy, NAMMPolicy, builtin_memories, own_interval, resolve
from namm.report import Row, interval, label, resample
from namm.rl import Context, Decision, Episode, Growing, Remembered, Window, at_bytes_of, rollout
from namm.rl.decision import TOKENS

sys.path.insert(0, str(Path(__file__).parents[2]))  # the root of the repository: `experiments` is found there

from experiments.control.simulators import make

log = logging.getLogger(__name__)
OWN = "own"
WINDOW, FULL = "window", "full"
_PUT_BESIDE = (n for n, kind in BASELINES.items() if n != FULL and not kind.whole and not kind.calibrates)
MEMORIES = (*_PUT_BESIDE, *builtin_memories())  # there are no two texts to calibrate by


@dataclass(frozen=True)
class Method:
    """A line of the table. `budget`: steps whose full cache takes as many bytes, "own", or None where all is kept."""

    name: str
    budget: int | str | None
    context: Context


@dataclass(frozen=True)
class Progress:
    """Episodes there are and will be, and what is being played."""

    done: int
    total: int
    playing: str


def methods(
    decision: Decision, memories: Iterable[str], budgets: Iterable[int | str], update_interval: int
) -> list[Method]:
    """The window of training and those of the budgets, the full cache, then each memory at each budget.

    Raises:
        ConfigurationError: a budget that is no number of steps nor "own", or an interval that cuts a step.
        NotFoundError: no memory has that name.
    """
    if update_interval < 1 or update_interval % TOKENS:
        raise ConfigurationError(
            f"an update interval in whole steps of {TOKENS} tokens", update_interval, "Try 48, which is 16 steps."
        )
    budgets = list(budgets)
    for budget in budgets:
        if budget != OWN and not (isinstance(budget, int) and budget > 0):
            raise ConfigurationError(f'a budget in steps, or "{OWN}"', repr(budget), "20 is the usual window.")
    windows = dict.fromkeys([decision.about.context, *(steps for steps in budgets if isinstance(steps, int))])
    chosen = [Method(WINDOW, steps, Window(steps)) for steps in windows] + [Method(FULL, None, Growing())]
    policies = {name: resolve(name) for name in memories}
    for name, policy in policies.items():
        if isinstance(policy, NAMMPolicy) and (evolved := own_interval(policy)) != update_interval:
            log.warning(
                "%s was evolved on texts, with an update each %d tokens, not %d.", name, evolved, update_interval
            )
        for budget in budgets:
            if budget == OWN and not policy.absolute:
                continue
            selection = None if isinstance(budget, str) else at_bytes_of(decision, policy, budget)
            chosen.append(Method(name, budget, Remembered(policy, selection, update_interval)))
    return chosen


def evaluate(
    decision: Decision,
    out: Path,
    chosen: Iterable[Method],
    seeds: Iterable[int],
    env_id: str | None = None,
    target: float | None = None,
    beside: int = 10,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> list[Row]:
    """Play an episode for each method and seed; rows are added to `out`, those that are there are not played again.

    Args:
        env_id: the environment; the model's own if left out.
        target: the return that is asked for; the model's own if left out.
        beside: episodes that are played side by side.

    Raises:
        ConfigurationError: the environment does not fit the model, or `out` holds rows of this model that were measured
            in another way.
    """
    chosen, seeds = list(chosen), list(seeds)
    if not seeds or beside < 1:
        raise ConfigurationError("an episode at least, of each", f"{len(seeds)}, {beside} side by side", "Give more.")
    env_id = env_id or decision.about.env_id
    target = decision.about.target if target is None else target
    common = _common(decision, env_id, target)
    place = (decision.about.name, TOKENS * decision.about.context)
    with open_folder(out) as file:
        _check_alike(out, place, common, chosen)
        for number, method in enumerate(chosen):
            missing = [seed for seed in seeds if (*place, str(seed), method.name, method.budget) not in file.known]
            for start in range(0, len(missing), beside):
                group = missing[start : start + beside]
                on_progress(Progress(number * len(seeds) + start, len(chosen) * len(seeds), _title(method)))
                episodes = rollout(decision, lambda: make(env_id), group, method.context, target)
                file.add([row_of(decision, method, episode, len(group)) | common for episode in episodes])
    on_progress(Progress(len(chosen) * len(seeds), len(chosen) * len(seeds), "done"))
    rows = read_rows(out)
    write(out / "summary.md", to_markdown(rows))
    return rows


_SAME = ("env", "target", "updates", "loss", "width", "layers", "heads", "data_steps")  # of a model's rows in a folder


def _check_alike(out: Path, place: tuple[str, int], common: Row, chosen: Iterable[Method]) -> None:
    """Raise if rows of the same model and methods were measured in another way."""
    wanted = {(method.name, method.budget): _memory_fields(method.context) for method in chosen}
    for row in read_rows(out):
        if (row["task"], row["tokens"]) != place:
            continue
        now = {name: common[name] for name in _SAME} | wanted.get((row["policy"], row["budget"]), {})
        if differ := [name for name, value in now.items() if row.get(name, value) != value]:
            raise ConfigurationError(
                f"rows of {place[0]} with " + ", ".join(f"{name} = {now[name]!r}" for name in differ),
                ", ".join(repr(row[name]) for name in differ) + f" in {out}",
                "Use another folder.",
            )


def _memory_fields(context: Context) -> Row:
    if not isinstance(context, Remembered):
        return {"selection": None, "update_interval": None}
    return {"selection": repr(context.selection), "update_interval": context.update_interval}


def _title(method: Method) -> str:
    return method.name if method.budget is None else f"{method.name} at {method.budget}"


def row_of(decision: Decision, method: Method, episode: Episode, beside: int) -> Row:
    """The row of one episode."""
    context, steps = method.context, len(episode)
    policy: MemoryPolicy | None = context.policy if isinstance(context, Remembered) else None
    return {
        "task": decision.about.name,
        "tokens": TOKENS * decision.about.context,
        "sample": str(episode.seed),
        "seed": episode.seed,
        "policy": method.name,
        "budget": method.budget,
        "return": episode.total,
        "normalised": decision.about.scale.normalised(episode.total),
        "length": steps,
        "terminated": episode.terminated,
        "steps_per_second": round(steps / episode.seconds, 1),
        "beside": beside,
        "bytes_held": episode.bytes_held,
        "bytes_most": episode.bytes_most,
        "bytes_full": episode.bytes_full,
        **_memory_fields(context),
        "rehearses": policy is not None and policy.rehearsal is not None,
    }


def _common(decision: Decision, env_id: str, target: float) -> Row:
    about, config = decision.about, decision.model.config
    return {
        "env": env_id,
        "target": target,
        "context": about.context,
        "scale": about.scale.source,
        "data_return": about.data_return,
        "data_steps": about.steps,
        "data_episodes": about.episodes,
        "training_seed": about.seed,
        "updates": about.updates,
        "loss": about.loss,
        "width": config.hidden_size,
        "layers": config.n_layer,
        "heads": config.n_head,
        "gymnasium": gymnasium.__version__,
        "mujoco": mujoco.__version__,
        **provenance(decision.model),
    }


@dataclass(frozen=True)
class Line:
    """One method on one model: means over its episodes, with 95 % bootstrap intervals over seeds.

    Attributes:
        against: normalised return less that of the window of training, on the seeds that both have.
        tokens_held, tokens_most: bytes, as so many tokens of a full cache.
    """

    task: str
    context: int
    policy: str
    budget: int | str | None
    n: int
    normalised: tuple[float, float, float]
    against: tuple[float, float, float] | None
    length: float
    tokens_held: float
    tokens_most: float


def summarise(rows: Iterable[Row]) -> list[Line]:
    """A line for each model and method, in the order of the rows."""
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        key = (row["task"], row["context"], row["policy"], row["budget"])
        groups.setdefault(key, {})[row["sample"]] = row
    windows = {key[:2]: group for key, group in groups.items() if key[2:] == (WINDOW, key[1])}
    lines = []
    for (task, context, policy, budget), group in groups.items():
        window = windows.get((task, context), {})
        both = [seed for seed in group if seed in window]
        gains = [group[seed]["normalised"] - window[seed]["normalised"] for seed in both]

        def mean(name: str, group: dict[str, Row] = group) -> float:
            return float(np.mean([row[name] for row in group.values()]))

        def tokens(name: str, group: dict[str, Row] = group) -> float:
            """Bytes as tokens of a full cache."""
            return float(np.mean([(TOKENS * r["length"] - 1) * r[name] / r["bytes_full"] for r in group.values()]))

        lines.append(
            Line(
                task,
                context,
                policy,
                budget,
                len(group),
                _estimate([r["normalised"] for r in group.values()]),
                _estimate(gains) if gains and group is not window else None,
                mean("length"),
                tokens("bytes_held"),
                tokens("bytes_most"),
            )
        )
    return lines


def _estimate(values: list[float]) -> tuple[float, float, float]:
    """Mean and the ends of its interval."""
    drawn = resample(np.asarray(values)[:, None], [str(i) for i in range(len(values))])
    low, high = interval(drawn)[:, 0]
    return float(drawn.mean[0]), float(low), float(high)


def to_markdown(rows: Iterable[Row]) -> str:
    """A table for each model."""
    parts: dict[tuple[str, int], list[Line]] = {}
    for line in summarise(rows):
        parts.setdefault((line.task, line.context), []).append(line)
    return "\n".join(
        f"### {task}, trained on windows of {context} steps\n\n{_table(lines)}"
        for (task, context), lines in parts.items()
    )


def _table(lines: list[Line]) -> str:
    text = [
        "| context | budget, steps | n | normalised return | above the window | length | tokens held | most |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for x in lines:
        against = "-" if x.against is None else f"{x.against[0]:+.1f} [{x.against[1]:+.1f}, {x.against[2]:+.1f}]"
        text.append(
            f"| {label(x.policy)} | {'-' if x.budget is None else x.budget} | {x.n} | "
            f"{x.normalised[0]:.1f} [{x.normalised[1]:.1f}, {x.normalised[2]:.1f}] | {against} | {x.length:.0f} | "
            f"{x.tokens_held:.0f} | {x.tokens_most:.0f} |"
        )
    return "\n".join(text) + "\n"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
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
    threads: Annotated[
        int, typer.Option(help="Torch threads, of which so small a model needs no more; 0: torch's choice.")
    ] = 1,
) -> None:
    """Returns under window, full cache and memories at equal bytes. Stopped, the same command goes on."""
    prepare(threads)
    decision = Decision.load(model)
    budgets = [int(text) if text.isdecimal() else text for text in budget or [str(decision.about.context)]]
    chosen = methods(decision, memory or MEMORIES, budgets, update_interval)
    with progress_bar() as bar:
        line = bar.add_task(str(model), total=None)

        def show(step: Progress) -> None:
            bar.update(line, completed=step.done, total=step.total, description=step.playing)

        rows = evaluate(decision, out, chosen, range(first_seed, first_seed + seeds), env, target, beside, show)
    mine = [row for row in rows if row["task"] == decision.about.name and row["context"] == decision.about.context]
    console.print(to_markdown(mine), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    with one_message():
        app()
