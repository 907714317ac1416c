"""The command line: `namm demo | eval | inspect | evolve | import`."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from namm.cli.demo import demo
from namm.cli.eval import evaluate
from namm.cli.evolve import evolve
from namm.cli.import_ import import_
from namm.cli.inspect import inspect
from namm.cli.shared import console
from namm.errors import NammError
from namm.version import __version__

app = typer.Typer(help="A learned memory for any transformer.", no_args_is_help=True, pretty_exceptions_enable=False)


def main() -> None:
    """Entry point: errors of this package are one message, not a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(show_path=False)])
    try:
        app()
    except NammError as error:
        Console(stderr=True).print(
            f"[bold red]{type(error).__name__}[/]: {escape(str(error))}", highlight=False, soft_wrap=True
        )
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


app.command()(demo)
app.command("eval")(evaluate)
app.command()(inspect)
app.command()(evolve)
app.command("import")(import_)
