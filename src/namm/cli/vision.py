"""`namm vision train | eval | show`."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from namm.cli.shared import console, prepare, progress_bar, share_or_name
from namm.errors import ConfigurationError

if TYPE_CHECKING:
    from namm.vision.evaluation import VideoConfig

vision = typer.Typer(help="Images and video: a small model of our own, and published benchmarks.", no_args_is_help=True)
_IMAGES = typer.Option(
    help="Folder of the Fashion-MNIST files; Debian's if left out (apt install dataset-fashion-mnist)."
)
_THREADS = typer.Option(help="Torch threads; 0 for torch's own choice.")
_CLIPS = "clips"


@vision.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the model, and of checkpoints until it is done.")],
    images: Annotated[Path | None, _IMAGES] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same model on the same machine.")] = 0,
    threads: Annotated[int, _THREADS] = 0,
) -> None:
    """Train the small video model, in about half an hour. Stopped, the same command goes on."""
    from namm.vision.train import TrainingConfig, TrainingProgress, steps_done
    from namm.vision.train import train as run

    prepare(threads)
    config = TrainingConfig(seed=seed)
    with progress_bar() as bar:
        line = bar.add_task("starting", total=config.steps, completed=steps_done(out))

        def show(p: TrainingProgress) -> None:
            told = f"{p.doing}: {p.accuracy:.2f} right, loss {p.loss:.2f}"
            bar.update(line, completed=p.step, description=told)
            if not console.is_terminal:
                console.print(f"{p.step:,} of {p.steps:,} steps, {told}", highlight=False)

        run(config, (_images("train", images), _images("validation", images)), out, show)
    console.print(f"The model: {out}", soft_wrap=True)


@vision.command("eval")
def evaluate(
    model: Annotated[str, typer.Option(help="Folder of the small model; for benchmarks also a hub id.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    policy: Annotated[list[str] | None, typer.Option(help="Only these, several times.")] = None,
    memory: Annotated[
        list[str] | None, typer.Option(help="Memory to compare besides: folder, hub id, builtin:...")
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="Share of the full cache's bytes, several times; own: a NAMM's own threshold."),
    ] = None,
    task: Annotated[str, typer.Option(help="clips, longvideobench or mlvu.")] = _CLIPS,
    seconds: Annotated[list[int] | None, typer.Option(help="Length of clips, several times; 48 if left out.")] = None,
    frames: Annotated[
        int | None, typer.Option(help="Frames shown of each video of a benchmark; 32 if left out.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Clips of each length (40 if left out), or first questions of a benchmark (all).")
    ] = None,
    asked: Annotated[int, typer.Option(help="Questions about each clip.")] = 10,
    split: Annotated[str, typer.Option(help="validation or test, of clips.")] = "test",
    update_interval: Annotated[int, typer.Option(help="Tokens between two updates.")] = 512,
    data: Annotated[Path | None, typer.Option(help="Folder of a benchmark, in its own layout.")] = None,
    images: Annotated[Path | None, _IMAGES] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    seed: Annotated[int, typer.Option(help="The same seed gives the same clips.")] = 0,
    threads: Annotated[int, _THREADS] = 0,
) -> None:
    """Accuracy over bytes held: baselines, memories, and fewer frames."""
    from namm.evaluation.rows import read_rows
    from namm.vision.evaluation import VideoConfig, VideoProgress, evaluate_video
    from namm.vision.summary import tables

    prepare()
    clips = task == _CLIPS
    _check_options(
        clips, seconds=seconds, images=images, frames=frames, data=data, dtype=None if dtype == "auto" else dtype
    )
    frames, samples = frames or 32, (40 if clips else 0) if samples is None else samples
    standard = VideoConfig("")
    config = VideoConfig(
        model=model, policies=tuple(policy or standard.policies) + tuple(memory or ()),
        budgets=tuple(map(share_or_name, budget)) if budget else standard.budgets, tasks=(task,),
        tokens=tuple(seconds or (48,)) if clips else (frames,), samples=samples, asked=asked, split=split, seed=seed,
        update_interval=update_interval, data=None if data is None else str(data), dtype=dtype, threads=threads,
    )  # fmt: skip
    loaded, config, listings = _clips(config, images) if clips else _benchmark(config, task, data, frames)
    with progress_bar() as bar:
        line = bar.add_task("loading", total=None)

        def show(p: VideoProgress) -> None:
            bar.update(line, completed=p.done, total=p.total, description=p.watching)

        evaluate_video(config, listings, loaded, out, show)
    for found in tables(read_rows(out)):
        shown = ("policy", "accuracy", "to full", "bytes")
        table = Table(box=None, pad_edge=False, title=found.title, title_justify="left")
        for heading in shown:
            table.add_column(heading, justify="left" if heading == "policy" else "right", no_wrap=True)
        for cells in found.lines:
            table.add_row(*(cells[found.headings.index(heading)] for heading in shown))
        console.print(table)
        console.print()
    console.print(f"Each kind of question: {out}/summary.md; the rows: {out}/rows.jsonl", soft_wrap=True)


@vision.command()
def show(
    model: Annotated[Path, typer.Option(help="Folder of the small model.")],
    out: Annotated[Path, typer.Option(help="Picture to write: .png, .svg or .pdf.")],
    policy: Annotated[list[str] | None, typer.Option(help="Memories to show, several times.")] = None,
    budget: Annotated[float, typer.Option(help="Share of the full cache's tokens.")] = 0.25,
    seconds: Annotated[int, typer.Option(help="Length of the clip.")] = 48,
    seed: Annotated[int, typer.Option(help="Which clip.")] = 0,
    images: Annotated[Path | None, _IMAGES] = None,
) -> None:
    """Which frames of a clip a memory sheds: each as strong as it is held."""
    import namm
    from namm.policies import DEFAULT_MEMORY
    from namm.vision.clips import make_clip
    from namm.vision.layout import kept, layout
    from namm.vision.picture import film_strip
    from namm.vision.small import clip_inputs, load_small

    prepare()
    loaded = load_small(model)
    clip = make_clip(_images("test", images), seconds, (seed, 2, 0))
    inputs = clip_inputs(clip)
    step = inputs["input_ids"].shape[1] // 16 * 16  # one update, at the end
    reports = {}
    for name in policy or ("streaming", "h2o", DEFAULT_MEMORY):
        with namm.attach(loaded, name, namm.Budget(fraction=budget), step) as memory:
            loaded(**inputs, logits_to_keep=1)
            reports[name] = kept(memory.cache, layout(loaded.config, inputs))
        console.print(f"[bold]{name}[/]\n{reports[name]}", highlight=False)
    console.print(f"The picture: {film_strip(clip, reports, out)}", soft_wrap=True)


def _images(split: str, folder: Path | None) -> Any:
    from namm.vision.images import SYSTEM, load_images

    return load_images(split, folder or SYSTEM)


def _check_options(clips: bool, **given: Any) -> None:
    """Raise for options of the other kind, which would be without effect."""
    others = ("frames", "data", "dtype") if clips else ("seconds", "images")
    if strange := [f"--{name}" for name in others if given[name] is not None]:
        raise ConfigurationError(
            f"options of {'clips' if clips else 'a benchmark'}", ", ".join(strange),
            "Leave them out, or choose --task longvideobench or mlvu." if clips else "Leave them out.",
        )  # fmt: skip


def _clips(config: VideoConfig, images: Path | None) -> tuple[Any, VideoConfig, Any]:
    """The small model, the configuration with the photographs' checksum, and clips."""
    from namm.vision.showing import clip_listings
    from namm.vision.small import load_small

    loaded = load_small(config.model)
    pictures = _images(config.split, images)
    listings = [
        one for n in config.tokens for one in clip_listings(pictures, n, config.samples, config.asked, config.seed)
    ]
    return loaded, replace(config, images=hashlib.sha256(pictures.pixels.tobytes()).hexdigest()), listings


def _benchmark(config: VideoConfig, task: str, data: Path | None, frames: int) -> tuple[Any, VideoConfig, Any]:
    """A model, the configuration as it was, and the videos of a benchmark."""
    from namm.models import load_vision_model
    from namm.vision.published import load_choices
    from namm.vision.showing import choice_listings

    if data is None:
        raise ConfigurationError(f"a folder with {task}", "none", "Download it and give its folder with --data.")
    choices = load_choices(task, data)[: config.samples or None]
    loaded, processor = load_vision_model(config.model, None if config.dtype == "auto" else config.dtype)
    return loaded, config, choice_listings(choices, loaded, processor, frames)
