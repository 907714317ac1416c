"""What every command needs: the console, and a quiet transformers."""

from __future__ import annotations

from rich.console import Console

console = Console()


def quiet() -> None:
    """transformers' own progress bars and notes do not belong between our lines."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
