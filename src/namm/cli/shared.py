"""What every command needs: the console, a bar, a quiet transformers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from namm.errors import ConfigurationError, NammError

if TYPE_CHECKING:
    from namm.evaluation import Progress as EvaluationProgress

console = Console()


@contextmanager
def one_message() -> Iterator[None]:
    """Errors of this package are one message and exit status 2, not a traceback."""
    try:
        yield
    except NammError as error:
        message = f"[bold red]{type(error).__name__}[/]: {escape(str(error))}"
        Console(stderr=True).print(message, highlight=False, soft_wrap=True)
        sys.exit(2)


def quiet() -> None:
    """transformers' own progress bars and notes do not belong between our lines."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def prepare(threads: int = 0) -> None:
    """Quiet, and with so many torch threads, if any are asked for."""
    quiet()
    if threads:
        import torch

        torch.set_num_threads(threads)


def progress_bar() -> Progress:
    """What is done of all, what is being done, and the time left."""
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=600,
    )


@contextmanager
def evaluation_bar(first: str) -> Iterator[Callable[[EvaluationProgress], None]]:
    """A bar of an evaluation, which says `first` until it is told what is being read."""
    with progress_bar() as bar:
        line = bar.add_task(first, total=None)
        yield lambda step: bar.update(line, completed=step.done, total=step.total, description=step.reading)


def table_of(headings: Iterable[str], texts: int = 1, **style: Any) -> Table:
    """A table of numbers, with so many columns of text before them."""
    table = Table(box=None, pad_edge=False, title_justify="left", **style)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place < texts else "right", no_wrap=True)
    return table


def read_share(said: str) -> float | None:
    """A budget of one memory: `0.25` -> that share of the tokens; `own` -> None, a NAMM's own threshold."""
    if said == "own":
        return None
    try:
        return float(said)
    except ValueError as error:
        raise ConfigurationError('a share in (0, 1] or "own" for --budget', repr(said), "Try --budget 0.25.") from error
