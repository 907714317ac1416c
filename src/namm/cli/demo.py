"""`namm demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from namm.cli.options import Memory, Model
from namm.cli.shared import console, quiet, table_of
from namm.defaults import DEFAULT_MEMORY, DEFAULT_MODEL
from namm.errors import ConfigurationError

if TYPE_CHECKING:
    from namm.demo import Story, Trial


def demo(
    tokens: Annotated[int, typer.Option(min=200, help="Tokens of the novel to read.")] = 4000,
    budget: Annotated[float, typer.Option(help="Share of the tokens that each memory may keep.")] = 0.25,
    depth: Annotated[float, typer.Option(min=0.0, max=1.0, help="Where the fact is hidden: 0 start, 1 end.")] = 0.4,
    seed: Annotated[int, typer.Option(help="Chooses the chapter and the hidden number.")] = 0,
    file: Annotated[Path | None, typer.Option(help="A text of yours in place of the novel.")] = None,
    question: Annotated[str | None, typer.Option(help="What to ask about it.")] = None,
    model: Model = DEFAULT_MODEL,
    memory: Memory = DEFAULT_MEMORY,
    out: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("demo-output"),
) -> None:
    """A language model reads a novel with a hidden fact, or a text of yours, under several memories of one size."""
    from namm import demo as stage
    from namm.calibrating import calibrated
    from namm.files import read
    from namm.models import load_model
    from namm.policies import own_interval, resolve

    quiet()
    if (file is None) != (question is None):
        raise ConfigurationError("--file and --question together", "one of them", "Give both, or neither.")
    learned = resolve(memory)
    interval = own_interval(learned)
    own = None if file is None else _decoded(read(file, "Give a text file in UTF-8."), file)
    started = time.perf_counter()
    with console.status(f"loading {model}"):
        lm, tokenizer = load_model(model)
    with console.status(f"calibrating {memory} for {model}, once"):
        rows = stage.attachments(budget, calibrated(learned, lm, tokenizer), interval)
    if own is None or question is None:
        story = stage.tell(tokenizer, tokens, depth, seed)
        assert story.fact is not None
        about = (
            f"of Jane Austen's [italic]{stage.BOOK.title()}[/]; tokens {story.fact[0]:,}-{story.fact[1]:,} say "
            f"that the pass key is {story.answer}.\nThen it is asked: {stage.QUESTION}"
        )
    else:
        story = stage.tell_own(lm, tokenizer, own, question)
        about = f"of {escape(str(file))}.\nThen it is asked: {escape(question)}"
    console.print(
        f"[bold]{escape(model)}[/] reads {story.text.shape[1]:,} tokens {about} Each memory may keep {budget:.0%} of "
        f"what was read, and decides every {interval} tokens and when the text has been read.\n",
        highlight=False,
    )
    trials: list[Trial] = []
    with console.status("") as status:
        status.update(f"reading with {next(iter(rows))}")
        waiting = [*rows, ""]
        for trial in stage.run(lm, tokenizer, story, rows):
            trials.append(trial)
            begun = f"{stage.REPLY} " if story.answer else ""
            console.print(f"  {trial.name:<14} {begun}{escape(trial.reply)}", highlight=False)
            status.update(f"reading with {waiting[len(trials)]}")
    console.print()
    console.print(_demo_table(trials, story))
    picture = stage.picture(trials, story, out / "kept.png")
    console.print(f"\n{_in_words(trials, story)}", highlight=False)
    console.print(
        f"What was kept: {picture}   (all of this measured just now, in {time.perf_counter() - started:.0f} s)",
        soft_wrap=True,
    )


def _decoded(text: bytes, file: Path) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError("a text file in UTF-8", str(file), f"It has other bytes: {error.reason}.") from error


def _demo_table(trials: list[Trial], story: Story) -> Table:
    from namm.demo import verdict

    full = trials[0]
    headings = ("memory", "answer", "slots", "held MB", "of full", "peak MB", "prefill", "decode")
    table = table_of(headings, texts=2, padding=(0, 1, 0, 0))
    for o in trials:
        r, said = o.report, verdict(o, full, story)
        color = {"right": "green", "wrong": "red"}.get(said, "none")
        table.add_row(
            o.name,
            f"[{color}]{said}[/]",
            f"{r.slots:,}",
            f"{r.bytes_held / 1e6:.1f}",
            f"{r.bytes_held / full.report.bytes_held:.0%}",
            f"{r.peak_bytes / 1e6:.1f}",
            f"{o.prefill / full.prefill:.2f}x",
            f"{o.decode / full.decode:.2f}x",
        )
    return table


def _in_words(trials: list[Trial], story: Story) -> str:
    """What the table says of the learned memory, for whoever does not read tables."""
    from namm.demo import verdict

    full, ours = trials[0], trials[-1]
    replies = {"right": "answered right", "wrong": "answered wrong", "the same": "gave the same answer"}
    said, theirs = (replies.get(verdict(o, full, story), "gave another answer") for o in (ours, full))
    return (
        f"After reading, the full cache held {full.report.bytes_held / 1e6:.0f} MB"
        + (f" and {theirs}" if story.answer else "")
        + f"; the {ours.name} held {ours.report.bytes_held / 1e6:.0f} MB, its own state included, and {said}. It read "
        f"{ours.prefill / full.prefill:.2f} and answered {ours.decode / full.decode:.2f} times as fast as the full "
        f"cache ({full.prefill:.0f} and {full.decode:.1f} tokens a second)."
    )
