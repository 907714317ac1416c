"""`namm eval`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from namm.cli.shared import console, progress_bar, quiet, share_or_name
from namm.errors import ConfigurationError

if TYPE_CHECKING:
    from namm.report.summary import Summary


def evaluate(
    out: Annotated[Path | None, typer.Option(help="Folder of rows and report. A run that is there goes on.")] = None,
    model: Annotated[str, typer.Option(help="Known name, folder, GGUF file or hub id.")] = "smollm2-135m-instruct",
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="Policy or memory to compare, several times; all baselines and the shipped memory if left out."
        ),
    ] = None,
    memory: Annotated[
        list[str] | None, typer.Option(help="Memory to compare besides: folder, hub id, builtin:...")
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            help="Share of the full cache's bytes, several times; own: a NAMM's own threshold; 0.5, 0.25 if left out."
        ),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Task, suite or JSONL file, several times; the embedded suite if left out.")
    ] = None,
    tokens: Annotated[
        list[int] | None, typer.Option(help="Length of generated contexts, several times; 1,024 if left out.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples of each task and length; 0 for all.")] = 24,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    protocol: Annotated[
        str, typer.Option(help="context-first: decide before the question is known; whole: read all as one text.")
    ] = "context-first",
    template: Annotated[str, typer.Option(help="auto, chat or raw.")] = "auto",
    update_interval: Annotated[int, typer.Option(help="Tokens between two updates.")] = 512,
    longest: Annotated[
        int, typer.Option(help="Cut loaded prompts in the middle to so many tokens; 0: the model's.")
    ] = 0,
    data: Annotated[Path | None, typer.Option(help="Folder of downloaded benchmarks; the hub if left out.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    batch: Annotated[int, typer.Option(help="Memories that read a text side by side; for GPUs.")] = 1,
    threads: Annotated[int, typer.Option(help="Torch threads; 0 for torch's own choice.")] = 0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same samples.")] = 0,
    list_: Annotated[bool, typer.Option("--list", help="List tasks and policies, and stop.")] = False,
    part: Annotated[str, typer.Option(help="k/n: every n-th text, for n processes that share --out.")] = "1/1",
    report: Annotated[bool, typer.Option("--report", help="Only write the report of --out again.")] = False,
) -> None:
    """What memories are worth: policies x budgets x tasks x lengths, at equal bytes, with intervals."""
    if list_:
        _show_names()
        return
    if out is None:
        raise ConfigurationError("a folder for the results", "none", "Give one: --out results/mine.")
    from namm.evaluation import EvaluationConfig, write_report
    from namm.evaluation import Progress as Step
    from namm.evaluation import evaluate as run

    if report:
        _show(write_report(out), out)
        return
    quiet()
    standard = EvaluationConfig()
    config = EvaluationConfig(
        model=model, policies=tuple(policy or standard.policies) + tuple(memory or ()),
        budgets=tuple(map(share_or_name, budget)) if budget else standard.budgets,
        tasks=tuple(task or standard.tasks), tokens=tuple(tokens or standard.tokens), samples=samples, split=split,
        seed=seed, protocol=protocol, template=template, update_interval=update_interval, longest=longest,
        data=str(data) if data else None, dtype=dtype, batch=batch, threads=threads,
    )  # fmt: skip
    with progress_bar() as bar:
        line = bar.add_task(f"loading {model}", total=None)

        def show(step: Step) -> None:
            bar.update(line, completed=step.done, total=step.total, description=step.reading)

        summary = run(config, out, show, part=_part(part))
    _show(summary, out)


def _show(summary: Summary, out: Path) -> None:
    """The means; intervals, differences and tasks stand in the files."""
    from namm.report.summary import estimate, label, number, share

    for group in summary.groups:
        table = Table(box=None, pad_edge=False, title=f"{group.setting}, {group.allowance}", title_justify="left")
        unfinished = any(line.overall.missing for line in group.lines)
        for heading in ("policy", *(["n"] if unfinished else []), "NLL", "normalised", "exact", "gap closed", "bytes"):
            table.add_column(heading, justify="left" if heading == "policy" else "right", no_wrap=True)
        for line in group.lines:
            s = line.overall
            cells = [f"{s.n}/{s.n + s.missing}"] if unfinished else []
            gap = number(s.gap_closed.mean) if s.gap_closed else "-"
            cells += [number(s.nll), estimate(s.normalised), number(s.exact), gap, share(s.bytes_share)]
            table.add_row(label(line.policy), *cells)
        console.print(table)
        console.print()
    console.print(
        "normalised: 1 is the full cache, 0 its first tokens only, with 95 % intervals. "
        f"All figures: {out}/summary.md; the page: {out}/report.html; the rows: {out}/rows*.jsonl",
        soft_wrap=True,
    )


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found:
        raise ConfigurationError("a part k/n", repr(text), "Run --part 1/2 and --part 2/2 side by side.")
    return int(found[1]), int(found[2])


def _show_names() -> None:
    from namm.policies import BASELINES, builtin_memories
    from namm.tasks.registry import SUITES

    table = Table(box=None, pad_edge=False)
    for heading in ("task", "made or loaded", "asks for"):
        table.add_column(heading)
    for tasks in SUITES.values():
        for task in tasks.values():
            table.add_row(task.name, "made, any length" if task.generated else "loaded", task.description)
    console.print(table)
    console.print(f"\nSuites: {', '.join(SUITES)}; or a file of your own that ends in .jsonl.")
    console.print(f"Policies: {', '.join([*BASELINES, *builtin_memories()])}; or a folder or hub id of a memory.")
