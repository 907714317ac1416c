"""The command line: `namm demo | eval | inspect | evolve | import | serve | vision`."""

from __future__ import annotations

import logging
from typing import Annotated

import typer
from rich.logging import RichHandler

from namm.cli import eval, evolve
from namm.cli.demo import demo
from namm.cli.import_ import import_
from namm.cli.inspect import inspect
from namm.cli.options import add_command
from namm.cli.serve import serve
from namm.cli.shared import console, one_message
from namm.cli.vision import vision
from namm.version import __version__

app = typer.Typer(help="A learned memory for any transformer.", no_args_is_help=True, pretty_exceptions_enable=False)


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(show_path=False)])
    with one_message():
        app()


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
add_command(app, "eval", eval.evaluate, eval.options)
app.command()(inspect)
add_command(app, "evolve", evolve.evolve, evolve.options)
app.command("import")(import_)
app.command()(serve)
app.add_typer(vision, name="vision")
