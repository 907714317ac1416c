"""How the small model answers under memories: accuracy over bytes on made clips.

python experiments/video/evaluate.py --help
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from functools import partial
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import typer
from pydantic import Field

from namm.cli.options import Memories, add_command, options_of
from namm.cli.shared import one_message, prepare
from namm.cli.vision import measure
from namm.configuration import Lengths, Names
from namm.report import Row
from namm.vision import Inputs, Listing, Query, Showing, VideoConfig, evenly

sys.path.insert(0, str(Path(__file__).parents[2]))  # the root of the repository: `experiments` is found there

from experiments.video.clips import Clip, choose, make_clip
from experiments.video.images import SYSTEM, Images, load_images
from experiments.video.small import clip_inputs, load_small, text_ids


class ClipConfig(VideoConfig):
    """One evaluation on clips, complete."""

    unit: ClassVar[str] = "seconds"

    model: str
    """Folder of the small model."""
    tasks: Names = ("clips",)
    """Clips."""
    tokens: Lengths = (48,)
    """Length of clips, in seconds."""
    samples: int = Field(default=40, ge=1)
    """Clips of each length."""
    asked: int = Field(default=10, ge=1)
    """Questions about each clip."""
    split: Literal["validation", "test"] = "test"
    """validation or test: photographs that the model has not seen."""
    seed: int = 0
    """The same seed gives the same clips."""
    images: str | None = None
    """Checksum of the photographs that clips are made from."""

    def row(self) -> Row:
        return super().row() | {"split": self.split, "seed": self.seed}


def clip_listings(images: Images, seconds: int, clips: int, asked: int, seed: int = 0) -> Iterator[Listing]:
    """Made clips for the small model, with `asked` questions about each."""
    for number in range(clips):
        clip = make_clip(images, seconds, (seed, 2, number))
        queries = tuple(
            Query(q.kind, f"{number}: {q.text}", tuple(text_ids(q.text)), text_ids(q.answer)[0])
            for q in choose(clip, asked, (seed, 2, number, 1))
        )
        asks = tuple((query.kind, query.name) for query in queries)
        showing = partial(_showing, clip, f"clip {number}", queries)
        yield Listing(f"clip {number}", seconds, asks, showing)


def _showing(clip: Clip, name: str, queries: tuple[Query, ...]) -> Showing:
    return Showing(name, clip.seconds, clip_inputs(clip), queries, partial(thinned, clip))


def thinned(clip: Clip, share: float) -> Inputs:
    """The clip with evenly chosen seconds only, which keep their numbers."""
    count = max(1, int(share * clip.seconds))
    return clip_inputs(clip, evenly(clip.seconds, count))


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    memory: Memories = None,
    photographs: Annotated[
        Path,
        typer.Option("--images", help="Folder of the Fashion-MNIST files (Debian: apt install dataset-fashion-mnist)."),
    ] = SYSTEM,
    **settings: Any,
) -> None:
    """Accuracy over bytes held: baselines, memories, and fewer frames."""
    prepare()
    settings["policies"] += memory or []
    config = ClipConfig(**settings)
    model, pictures = load_small(Path(config.model)), load_images(config.split, photographs)
    config = config.replace(images=hashlib.sha256(pictures.pixels.tobytes()).hexdigest())
    listings = [
        one for n in config.tokens for one in clip_listings(pictures, n, config.samples, config.asked, config.seed)
    ]
    measure(config, listings, model, out)


def _options() -> list[Parameter]:
    flags = {"policies": "policy", "budgets": "budget", "tokens": "seconds"}
    return [one for one in options_of(ClipConfig, flags) if one.name not in ("tasks", "data", "images", "dtype")]


add_command(app, "evaluate", main, _options)


if __name__ == "__main__":
    with one_message():
        app()
