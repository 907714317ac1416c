"""`namm evolve`."""

from __future__ import annotations

from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from namm.cli.options import option
from namm.cli.shared import console, quiet
from namm.errors import ConfigurationError

if TYPE_CHECKING:
    from namm.evolution import EvolutionConfig, Generation

_INTERRUPTED = 130  # what a shell calls a command that Ctrl-C ended


_PLACES = {"seed": "seed", "workers": "workers.count", "threads": "workers.threads", "ray": "workers.ray"}


def options() -> list[Parameter]:
    """Those settings that are changed most often."""
    from namm.evolution import EvolutionConfig, Stage, Workers

    return [
        option("generations", Stage, "generations", preset=False),
        option("seed", EvolutionConfig, "seed", preset=False),
        option("workers", Workers, "count", preset=False),
        option("threads", Workers, "threads", preset=False),
        option("ray", Workers, "ray", preset=False),
    ]


def evolve(
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoints, log, curves and the memory.")],
    config: Annotated[
        Path | None, typer.Option(help="TOML, YAML or JSON file; also the run.json of a saved memory.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="A configuration of ours: embedded (if left out), universal, incremental or paper."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any value, several times: --set search.sigma=0.1"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    **flags: Any,
) -> None:
    """Evolve a memory by CMA-ES; the fitness is how well the model answers after the memory has forgotten."""
    from namm.evolution import evolve as run

    quiet()
    given = _config(out, config, preset, resume)
    places = _PLACES | {"generations": f"stages.{len(given.stages) - 1}.generations"}
    changes = (f"{places[name]}={value}" for name, value in flags.items() if value is not None)
    given = given.changed(*(settings or ()), *changes)
    bar = Progress(
        TextColumn("generation"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
    line = bar.add_task("", total=given.generations)
    state = Text("starting")
    last = None

    def show(g: Generation) -> None:
        nonlocal last
        if last is None:
            bar.reset(line, completed=g.generation - 1)  # what a resumed run had done took no time now
        last = g
        bar.update(line, completed=g.generation)
        state.plain = describe(g)

    try:
        with Live(Group(bar, state), console=console):
            run(given, out, resume, show)
    except KeyboardInterrupt:
        _interrupted(out)
    finally:
        if not console.is_terminal:
            console.print()  # into a file, rich ends its last line with no line break
    console.print(f"The memory: {out / 'memory'}   (1.0 is as good as forgetting nothing)", soft_wrap=True)


def describe(g: Generation) -> str:
    """One generation in a line."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    validated = "" if g.best_validation is None else f"  validated {number(g.best_validation)}"
    share = "-" if g.share is None else f"{g.share:.0%}"
    fitness = f"fitness of mean {number(g.mean)} best {number(g.best)}"
    return f"{g.stage}: {fitness}{validated}  kept {share}  sigma {g.sigma:.3f}  {g.rate:.2g} evaluations/s"


def _config(out: Path, config: Path | None, preset: str | None, resume: bool) -> EvolutionConfig:
    """What the run starts from: a file, a preset, or, when it goes on, what it was."""
    from namm.evolution import EvolutionConfig

    if config is not None and preset is not None:
        raise ConfigurationError("--config or --preset", "both", "Give one and change values by --set.")
    if config is not None:
        return EvolutionConfig.load(config)
    if preset is None and resume and (out / "run.json").exists():
        return EvolutionConfig.load(out / "run.json")
    return EvolutionConfig.preset(preset or "embedded")


def _interrupted(out: Path) -> None:
    saved = (out / "checkpoint.json").exists()
    kept = "every finished generation is kept" if saved else "no generation was finished"
    console.print(f"Stopped; {kept}. Go on with:  namm evolve --out {out} --resume", highlight=False, soft_wrap=True)
    raise typer.Exit(_INTERRUPTED)
