"""What every command needs: the console, and a quiet transformers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

from namm.errors import NammError

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
