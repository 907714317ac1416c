"""What memories are worth to the small model: accuracy over bytes on made clips.

python experiments/video/evaluate.py --help
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from namm.cli.shared import one_message, prepare, share_or_name
from namm.cli.vision import measure
from namm.errors import ConfigurationError
from namm.evaluation.rows import Row
from namm.vision.evaluation import VideoConfig
from namm.vision.reading import Inputs, Listing, Query, Showing
from namm.vision.showing import evenly

sys.path.insert(0, str(Path(__file__).parents[2]))  # the root of the repository: `experiments` is found there

from experiments.video.clips import Clip, choose, make_clip
from experiments.video.images import SYSTEM, Images, load_images
from experiments.video.small import clip_inputs, load_small, text_ids


@dataclass(frozen=True)
class ClipConfig(VideoConfig):
    """One evaluation on clips, complete.

    Attributes:
        samples: clips of each length.
        asked: questions about each clip.
        seed: the same gives the same clips.
        images: checksum of the photographs that clips are made from.
    """

    unit: ClassVar[str] = "seconds"

    tasks: tuple[str, ...] = ("clips",)
    tokens: tuple[int, ...] = (48,)
    samples: int = 40
    asked: int = 10
    split: str = "test"
    seed: int = 0
    images: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split not in ("validation", "test"):
            raise ConfigurationError("a split that the model has not seen", repr(self.split), "validation or test.")
        for name in ("samples", "asked"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} >= 1", getattr(self, name), "See the help for what it means.")

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


@app.command()
def main(
    model: Annotated[Path, typer.Option(help="Folder of the small model.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    policy: Annotated[list[str] | None, typer.Option(help="Only these, several times.")] = None,
    memory: Annotated[
        list[str] | None, typer.Option(help="Memory to compare besides: folder, hub id, builtin:...")
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="Share of the full cache's bytes, several times; own: a NAMM's own threshold."),
    ] = None,
    seconds: Annotated[list[int] | None, typer.Option(help="Length of clips, several times; 48 if left out.")] = None,
    samples: Annotated[int, typer.Option(help="Clips of each length.")] = 40,
    asked: Annotated[int, typer.Option(help="Questions about each clip.")] = 10,
    split: Annotated[str, typer.Option(help="validation or test.")] = "test",
    update_interval: Annotated[int, typer.Option(help="Tokens between two updates.")] = 512,
    images: Annotated[
        Path, typer.Option(help="Folder of the Fashion-MNIST files (Debian: apt install dataset-fashion-mnist).")
    ] = SYSTEM,
    seed: Annotated[int, typer.Option(help="The same seed gives the same clips.")] = 0,
    threads: Annotated[int, typer.Option(help="Torch threads; 0 for torch's own choice.")] = 0,
) -> None:
    """Accuracy over bytes held: baselines, memories, and fewer frames."""
    prepare()
    standard = ClipConfig("")
    config = ClipConfig(
        model=str(model), policies=tuple(policy or standard.policies) + tuple(memory or ()),
        budgets=tuple(map(share_or_name, budget)) if budget else standard.budgets,
        tokens=tuple(seconds or standard.tokens), samples=samples, asked=asked, split=split, seed=seed,
        update_interval=update_interval, threads=threads,
    )  # fmt: skip
    loaded, pictures = load_small(model), load_images(split, images)
    config = replace(config, images=hashlib.sha256(pictures.pixels.tobytes()).hexdigest())
    listings = [one for n in config.tokens for one in clip_listings(pictures, n, samples, asked, seed)]
    measure(config, listings, loaded, out)


if __name__ == "__main__":
    with one_message():
        app()
