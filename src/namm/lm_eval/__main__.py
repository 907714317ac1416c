"""`python -m namm.lm_eval ...`: lm_eval's own command line, with the model "namm" known to it."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape

from namm.errors import NammError


def main() -> None:
    """Errors of this package are one message, not a traceback."""
    try:
        from lm_eval.__main__ import cli_evaluate

        import namm.lm_eval  # noqa: F401  (registers the model)

        cli_evaluate()
    except NammError as error:
        message = f"[bold red]{type(error).__name__}[/]: {escape(str(error))}"
        Console(stderr=True).print(message, highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
