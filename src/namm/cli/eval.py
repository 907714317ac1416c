"""`namm eval`."""

from __future__ import annotations

import re
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from namm.cli.options import Memories, options_of
from namm.cli.shared import console, evaluation_bar, quiet, table_of
from namm.errors import ConfigurationError

if TYPE_CHECKING:
    from namm.report import Summary


def options() -> list[Parameter]:
    """Those of the configuration."""
    from namm.evaluation import EvaluationConfig

    return options_of(EvaluationConfig, {"policies": "policy", "budgets": "budget", "tasks": "task"})


def evaluate(
    out: Annotated[Path | None, typer.Option(help="Folder of rows and report. A run that is there goes on.")] = None,
    memory: Memories = None,
    list_: Annotated[bool, typer.Option("--list", help="List tasks and policies, and stop.")] = False,
    part: Annotated[str, typer.Option(help="k/n: every n-th text, for n processes that share --out.")] = "1/1",
    report: Annotated[bool, typer.Option("--report", help="Only write the report of --out again.")] = False,
    **settings: Any,
) -> None:
    """How well memories answer: policies x budgets x tasks x lengths, at equal bytes, with intervals."""
    if list_:
        _show_names()
        return
    if out is None:
        raise ConfigurationError("a folder for the results", "none", "Give one: --out results/mine.")
    from namm.evaluation import EvaluationConfig, write_report
    from namm.evaluation import evaluate as run

    if report:
        _show(write_report(out), out)
        return
    quiet()
    settings["policies"] += memory or []
    config = EvaluationConfig(**settings)
    with evaluation_bar(f"loading {config.model}") as show:
        summary = run(config, out, show, part=_part(part))
    _show(summary, out)


def _show(summary: Summary, out: Path) -> None:
    """The means; intervals, differences and tasks stand in the files."""
    from namm.report import estimate, label, number, share

    for group in summary.groups:
        unfinished = any(line.overall.missing for line in group.lines)
        headings = ("policy", *(["n"] if unfinished else []), "NLL", "normalised", "exact", "gap closed", "bytes")
        table = table_of(headings, title=f"{group.setting}, {group.allowance}")
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
    from namm.tasks import SUITES

    table = Table(box=None, pad_edge=False)
    for heading in ("task", "made or loaded", "asks for"):
        table.add_column(heading)
    for tasks in SUITES.values():
        for task in tasks.values():
            table.add_row(task.name, "made, any length" if task.generated else "loaded", task.description)
    console.print(table)
    console.print(f"\nSuites: {', '.join(SUITES)}; or a file of your own that ends in .jsonl.")
    console.print(f"Policies: {', '.join([*BASELINES, *builtin_memories()])}; or a folder or hub id of a memory.")
