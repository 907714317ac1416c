"""`namm demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from namm.cli.shared import console, quiet

if TYPE_CHECKING:
    from namm.demo import Outcome


def demo(
    tokens: Annotated[int, typer.Option(min=200, help="Tokens of the novel to read.")] = 4000,
    budget: Annotated[float, typer.Option(help="Share of the tokens that each memory may keep.")] = 0.25,
    depth: Annotated[float, typer.Option(min=0.0, max=1.0, help="Where the fact is hidden: 0 start, 1 end.")] = 0.4,
    seed: Annotated[int, typer.Option(help="Chooses the chapter and the hidden number.")] = 0,
    model: Annotated[str, typer.Option(help="Model to read with.")] = "smollm2-135m-instruct",
    memory: Annotated[str, typer.Option(help="The learned memory.")] = "builtin:universal",
    out: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("demo-output"),
) -> None:
    """A language model reads a novel with a hidden fact, under several memories of the same size."""
    from namm import demo as stage
    from namm.models import load_model
    from namm.policies import own_interval, resolve

    quiet()
    learned = resolve(memory)
    interval = own_interval(learned)
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
            console.print(f"  {outcome.name:<14} {stage.REPLY} {escape(outcome.reply)}", highlight=False)
            status.update(f"reading with {waiting[len(outcomes)]}")
    console.print()
    console.print(_demo_table(outcomes))
    full = outcomes[0]
    console.print(
        "\nslots: after reading, all layers and heads. held: keys, values and the memory's own state. "
        f"Speeds are against the full cache: {full.prefill:.0f} tokens/s reading, {full.decode:.1f} answering."
    )
    file = stage.picture(outcomes, story, out / "kept.png")
    console.print(
        f"What was kept: {file}   (all of this measured just now, in {time.perf_counter() - started:.0f} s)",
        soft_wrap=True,
    )


def _demo_table(outcomes: list[Outcome]) -> Table:
    full = outcomes[0]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    left = ("memory", "answer", "")
    for heading in (*left, "slots", "held MB", "of full", "peak MB", "prefill", "decode"):
        table.add_column(heading, justify="left" if heading in left else "right", no_wrap=True)
    for o in outcomes:
        r = o.report
        table.add_row(
            o.name, escape(o.reply[:10]), "[green]right[/]" if o.right else "[red]wrong[/]", f"{r.slots:,}",
            f"{r.bytes_held / 1e6:.1f}", f"{r.bytes_held / full.report.bytes_held:.0%}", f"{r.peak_bytes / 1e6:.1f}",
            f"{o.prefill / full.prefill:.2f}x", f"{o.decode / full.decode:.2f}x",
        )  # fmt: skip
    return table
