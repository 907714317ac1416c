"""`python -m namm.lm_eval ...`: lm_eval's own command line, with the model "namm" known to it."""

from __future__ import annotations

import importlib

from namm.cli.shared import one_message


def main() -> None:
    """Entry point."""
    with one_message():
        importlib.import_module("namm.lm_eval")  # registers the model
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()


if __name__ == "__main__":
    main()
