"""`namm vision eval`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from namm.cli.shared import console, prepare, progress_bar, share_or_name
from namm.errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from namm.vision.evaluation import VideoConfig
    from namm.vision.reading import Listing

vision = typer.Typer(help="Images and video: published benchmarks.", no_args_is_help=True)


@vision.command("eval")
def evaluate(
    model: Annotated[str, typer.Option(help="Folder or hub id of a model of videos.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    task: Annotated[str, typer.Option(help="longvideobench or mlvu.")],
    policy: Annotated[list[str] | None, typer.Option(help="Only these, several times.")] = None,
    memory: Annotated[
        list[str] | None, typer.Option(help="Memory to compare besides: folder, hub id, builtin:...")
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="Share of the full cache's bytes, several times; own: a NAMM's own threshold."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the benchmark, in its own layout.")] = None,
    frames: Annotated[int, typer.Option(help="Frames shown of each video.")] = 32,
    samples: Annotated[int, typer.Option(help="First questions of the benchmark; 0 for all.")] = 0,
    update_interval: Annotated[int, typer.Option(help="Tokens between two updates.")] = 512,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    threads: Annotated[int, typer.Option(help="Torch threads; 0 for torch's own choice.")] = 0,
) -> None:
    """Accuracy over bytes held: baselines, memories, and fewer frames."""
    from namm.models import load_vision_model
    from namm.vision.evaluation import VideoConfig
    from namm.vision.published import load_choices
    from namm.vision.showing import choice_listings

    prepare()
    standard = VideoConfig("")
    config = VideoConfig(
        model=model, policies=tuple(policy or standard.policies) + tuple(memory or ()),
        budgets=tuple(map(share_or_name, budget)) if budget else standard.budgets, tasks=(task,), tokens=(frames,),
        samples=samples, update_interval=update_interval, data=None if data is None else str(data), dtype=dtype,
        threads=threads,
    )  # fmt: skip
    if data is None:
        raise ConfigurationError(f"a folder with {task}", "none", "Download it and give its folder with --data.")
    choices = load_choices(task, data)[: samples or None]
    loaded, processor = load_vision_model(model, None if dtype == "auto" else dtype)
    measure(config, choice_listings(choices, loaded, processor, frames), loaded, out)


def measure(config: VideoConfig, listings: Iterable[Listing], model: PreTrainedModel, out: Path) -> None:
    """Evaluate under a progress bar, and print the tables."""
    from namm.evaluation.rows import read_rows
    from namm.vision.evaluation import VideoProgress, evaluate_video
    from namm.vision.summary import tables

    with progress_bar() as bar:
        line = bar.add_task("loading", total=None)

        def show(p: VideoProgress) -> None:
            bar.update(line, completed=p.done, total=p.total, description=p.watching)

        evaluate_video(config, listings, model, out, show)
    for found in tables(read_rows(out), config.unit):
        shown = ("policy", "accuracy", "to full", "bytes")
        table = Table(box=None, pad_edge=False, title=found.title, title_justify="left")
        for heading in shown:
            table.add_column(heading, justify="left" if heading == "policy" else "right", no_wrap=True)
        for cells in found.lines:
            table.add_row(*(cells[found.headings.index(heading)] for heading in shown))
        console.print(table)
        console.print()
    console.print(f"Each kind of question: {out}/summary.md; the rows: {out}/rows.jsonl", soft_wrap=True)
