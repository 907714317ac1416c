"""`namm evolve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from namm.cli.shared import console, quiet


def evolve(
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoints, log and the memory.")],
    model: Annotated[str, typer.Option(help="Model whose cache is to be managed.")] = "smollm2-135m-instruct",
    task: Annotated[
        list[str] | None, typer.Option(help="Task, several times; passkey and niah_multikey if left out.")
    ] = None,
    tokens: Annotated[list[int] | None, typer.Option(help="Tokens of text in a sample, several times; 512.")] = None,
    budget: Annotated[float, typer.Option(help="Share of the tokens that candidates may keep.")] = 0.3,
    update_interval: Annotated[int, typer.Option(help="Tokens between two updates.")] = 64,
    space: Annotated[str, typer.Option(help='"scoring" (26 dimensions) or "all" (4,172).')] = "scoring",
    initial: Annotated[
        str | None, typer.Option(help="Memory to start at; zeros, as in the paper, if left out.")
    ] = None,
    generations: Annotated[int, typer.Option(help="Generations in all, those of a resumed run included.")] = 40,
    population: Annotated[int, typer.Option(help="Candidates in a generation.")] = 12,
    samples: Annotated[int, typer.Option(help="Common samples for the candidates of a generation.")] = 6,
    sigma: Annotated[float, typer.Option(help="First step size.")] = 0.065,
    validation: Annotated[int, typer.Option(help="Samples on which the mean is validated.")] = 12,
    validate_every: Annotated[int, typer.Option(help="Generations between two validations.")] = 4,
    threads: Annotated[int, typer.Option(help="Torch threads; 0 for torch's own choice.")] = 0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same run.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
) -> None:
    """Evolve a memory by CMA-ES on hidden facts in novels; the fitness is the likelihood of the right answer."""
    from namm.evolution import EvolutionConfig
    from namm.evolution import Progress as Generation
    from namm.evolution import evolve as run

    quiet()
    config = EvolutionConfig(
        model=model, tasks=tuple(task or ("passkey", "niah_multikey")), tokens=tuple(tokens or (512,)), fraction=budget,
        update_interval=update_interval, space=space, initial=initial, generations=generations, population=population,
        samples=samples, sigma=sigma, validation=validation, validate_every=validate_every, threads=threads, seed=seed,
    )  # fmt: skip
    columns = [
        TextColumn("generation"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    ]  # fmt: skip
    with Progress(*columns, console=console) as bar:
        line = bar.add_task("loading the model", total=generations)

        def show(g: Generation) -> None:
            validated = "" if g.best_validation is None else f"  best validation {g.best_validation:.3f}"
            text = f"fitness best {g.best:.3f} mean {g.mean:.3f}  sigma {g.sigma:.3f}{validated}"
            bar.update(line, completed=g.generation, description=f"{text}  {g.evaluations:,} evaluations")

        run(config, out, resume, show)
    console.print(f"The memory: {out / 'memory'}   (1.0 is as good as forgetting nothing, 0.0 the first tokens only)")
