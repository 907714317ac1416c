"""The command line: `namm demo | evolve | import`."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from namm.errors import ConfigurationError, NammError
from namm.version import __version__

if TYPE_CHECKING:
    from namm.demo import Outcome

app = typer.Typer(help="A learned memory for any transformer.", no_args_is_help=True, pretty_exceptions_enable=False)
console = Console()


def main() -> None:
    """Entry point: errors of this package are one message, not a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(show_path=False)])
    try:
        app()
    except NammError as error:
        Console(stderr=True).print(f"[bold red]{type(error).__name__}[/]: {error}", highlight=False, soft_wrap=True)
        sys.exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A learned memory for any transformer: which cached tokens stay, and which are forgotten."""


def _quiet() -> None:
    """transformers' own progress bars and notes do not belong between our lines."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@app.command()
def demo(
    tokens: Annotated[int, typer.Option(min=200, help="Tokens of the novel to read.")] = 4000,
    budget: Annotated[float, typer.Option(help="Share of the tokens that each memory may keep.")] = 0.25,
    depth: Annotated[float, typer.Option(min=0.0, max=1.0, help="Where the fact is hidden: 0 start, 1 end.")] = 0.4,
    seed: Annotated[int, typer.Option(help="Chooses the chapter and the hidden number.")] = 0,
    model: Annotated[str, typer.Option(help="Model to read with.")] = "smollm2-135m-instruct",
    memory: Annotated[str, typer.Option(help="The learned memory.")] = "builtin:smollm2-135m-instruct",
    out: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("demo-output"),
) -> None:
    """A language model reads a novel with a hidden fact, under several memories of the same size."""
    from namm import demo as stage
    from namm.models import load_model
    from namm.policies import NAMMPolicy, resolve

    _quiet()
    learned = resolve(memory)
    interval = learned.network.config.update_interval if isinstance(learned, NAMMPolicy) else 512
    rows = stage.contenders(budget, learned, interval)
    started = time.perf_counter()
    with console.status(f"loading {model}"):
        lm, tokenizer = load_model(model)
    story = stage.tell(tokenizer, tokens, depth, seed)
    console.print(
        f"[bold]{model}[/] reads {story.ids.shape[1]:,} tokens of Jane Austen's [italic]{stage.BOOK.title()}[/]; "
        f"tokens {story.fact[0]:,}-{story.fact[1]:,} say that the pass key is {story.answer}.\n"
        f"Then it is asked: {stage.QUESTION} Each memory may keep {budget:.0%} of what was read, and decides every "
        f"{interval} tokens.\n"
    )
    outcomes: list[stage.Outcome] = []
    with console.status("") as status:
        status.update(f"reading with {next(iter(rows))}")
        waiting = [*rows, ""]
        for outcome in stage.run(lm, tokenizer, story, rows):
            outcomes.append(outcome)
            console.print(f"  {outcome.name:<14} {stage.REPLY} {outcome.reply}", highlight=False)
            status.update(f"reading with {waiting[len(outcomes)]}")
    console.print()
    console.print(_demo_table(outcomes))
    full = outcomes[0]
    console.print(
        "\nslots: after reading, all layers and heads. held: keys, values and the memory's own state. "
        f"Speeds are against the full cache: {full.prefill:.0f} tokens/s reading, {full.decode:.1f} answering."
    )
    file = stage.picture(outcomes, story, out / "kept.png")
    console.print(f"What was kept: {file}   (all of this measured just now, in {time.perf_counter() - started:.0f} s)")


def _demo_table(outcomes: list[Outcome]) -> Table:
    full = outcomes[0]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    left = ("memory", "answer", "")
    for heading in (*left, "slots", "held MB", "of full", "peak MB", "prefill", "decode"):
        table.add_column(heading, justify="left" if heading in left else "right", no_wrap=True)
    for o in outcomes:
        r = o.report
        table.add_row(
            o.name, o.reply[:10], "[green]right[/]" if o.right else "[red]wrong[/]", f"{r.slots:,}",
            f"{r.bytes_held / 1e6:.1f}", f"{r.bytes_held / full.report.bytes_held:.0%}", f"{r.peak_bytes / 1e6:.1f}",
            f"{o.prefill / full.prefill:.2f}x", f"{o.decode / full.decode:.2f}x",
        )  # fmt: skip
    return table


@app.command()
def evolve(
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoints, log and the memory.")],
    model: Annotated[str, typer.Option(help="Model whose cache is to be managed.")] = "smollm2-135m-instruct",
    task: Annotated[list[str] | None, typer.Option(help="Task, several times; passkey and needle if left out.")] = None,
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

    _quiet()
    config = EvolutionConfig(
        model=model, tasks=tuple(task or ("passkey", "needle")), tokens=tuple(tokens or (512,)), fraction=budget,
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


@app.command("import")
def import_(
    checkpoint: Annotated[
        Path, typer.Argument(help="ckpt.pt, latest.pt or iter_N.pt of the reference implementation.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the memory to.")],
) -> None:
    """Read a checkpoint of the reference implementation and save it as a memory."""
    from namm.reference_checkpoint import import_checkpoint

    if out.exists() and any(out.iterdir()):
        raise ConfigurationError("an empty or new folder for --out", f"{out}, which holds files", "Choose another one.")
    network = import_checkpoint(checkpoint)
    network.save_pretrained(out)
    console.print(f"Saved {network.config.size:,} parameters: {out}")
    console.print("It was evolved with head fill-up: attach it with namm.Threshold(0.0, fill_heads=True).")


if __name__ == "__main__":
    main()
