"""`namm vision eval`."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import Parameter
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from namm.cli.options import Memories, add_command, options_of
from namm.cli.shared import console, evaluation_bar, prepare, table_of
from namm.errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from namm.vision import Listing, VideoConfig

vision = typer.Typer(help="Images and video: published benchmarks.", no_args_is_help=True)


def _options() -> list[Parameter]:
    from namm.vision import VideoConfig

    return options_of(VideoConfig, {"policies": "policy", "budgets": "budget", "tasks": "task", "tokens": "frames"})


def _evaluate(
    out: Annotated[Path, typer.Option(help="Folder of the results.")], memory: Memories = None, **settings: Any
) -> None:
    """Accuracy over bytes held: baselines, memories, and fewer frames."""
    from namm.models import load_vision_model
    from namm.vision import VideoConfig, choice_listings, load_choices

    prepare()
    settings["policies"] += memory or []
    config = VideoConfig(**settings)
    if config.data is None:
        tasks = " and ".join(config.tasks)
        raise ConfigurationError(f"a folder with {tasks}", "none", "Download it and give its folder with --data.")
    found = [load_choices(task, Path(config.data))[: config.samples or None] for task in config.tasks]
    model, processor = load_vision_model(config.model, None if config.dtype == "auto" else config.dtype)
    listings = (choice_listings(choices, model, processor, n) for choices in found for n in config.tokens)
    measure(config, chain.from_iterable(listings), model, out, processor.tokenizer)


add_command(vision, "eval", _evaluate, _options)


def measure(
    config: VideoConfig,
    listings: Iterable[Listing],
    model: PreTrainedModel,
    out: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Evaluate under a progress bar, and print the tables; for the tokenizer see `evaluate_video`."""
    from namm.evaluation import read_rows
    from namm.vision import evaluate_video, tables

    with evaluation_bar("loading") as show:
        evaluate_video(config, listings, model, out, show, tokenizer)
    for found in tables(read_rows(out), config.unit):
        shown = ("policy", "accuracy", "to full", "bytes")
        table = table_of(shown, title=found.title)
        for cells in found.lines:
            table.add_row(*(cells[found.headings.index(heading)] for heading in shown))
        console.print(table)
        console.print()
    console.print(f"Each kind of question: {out}/summary.md; the rows: {out}/rows.jsonl", soft_wrap=True)
