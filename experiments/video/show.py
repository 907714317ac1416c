"""A picture of what a memory sheds: the clip as a film strip under each memory, frames as strong as they are held.

python experiments/video/show.py --help
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from matplotlib.figure import Figure

import namm
from namm.cli.shared import console, one_message, prepare
from namm.errors import ConfigurationError
from namm.policies import DEFAULT_MEMORY
from namm.vision import FRAME, PartReport, kept, layout

sys.path.insert(0, str(Path(__file__).parents[2]))  # the root of the repository: `experiments` is found there

from experiments.video.clips import Clip, make_clip
from experiments.video.images import SYSTEM, load_images
from experiments.video.small import clip_inputs, load_small

_ROWS = 2  # lines of film for a clip
_FORMATS = (".png", ".svg", ".pdf")


def film_strip(clip: Clip, reports: Mapping[str, PartReport], file: str | Path) -> Path:
    """Draw one panel for each memory; a frame that no head holds any more is white.

    Args:
        reports: by name, of the prompt of this clip.
        file: where to write the picture (png, svg or pdf).

    Raises:
        ConfigurationError: the file's ending is none of these.
    """
    path = Path(file)
    if path.suffix not in _FORMATS:
        raise ConfigurationError(f"a picture, {', '.join(_FORMATS)}", str(path), "Choose one of these endings.")
    figure = Figure(figsize=(14, 0.9 + 1.15 * len(reports)), layout="constrained")
    panels = figure.subplots(len(reports), 1, squeeze=False)[:, 0]
    frames = clip.frames.reshape(-1, *clip.frames.shape[-2:])
    columns = -(-len(frames) // _ROWS)
    for panel, (name, report) in zip(panels, reports.items(), strict=True):
        shares = report.of(FRAME)
        film = np.full((_ROWS * columns, *frames.shape[1:]), 255.0)
        film[: len(frames)] = 255 + (frames - 255.0) * shares[:, None, None]
        height, width = frames.shape[1:]
        lines = (
            film.reshape(_ROWS, columns, height, width).transpose(0, 2, 1, 3).reshape(_ROWS * height, columns * width)
        )
        panel.imshow(lines, cmap="gray", vmin=0, vmax=255, aspect="equal", interpolation="nearest")
        for scene in clip.scenes:
            row, column = divmod(scene.start, columns)
            panel.annotate(
                scene.shows, (column * width, row * height + 3), fontsize=6, color="tab:red", va="top", ha="left"
            )
        whole, text = report.overall(FRAME), report.overall("text")
        panel.set_title(
            f"{name}: {whole:.0%} of the frames' tokens kept, {text:.0%} of the time stamps", loc="left", fontsize=9
        )
        panel.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    model: Annotated[Path, typer.Option(help="Folder of the small model.")],
    out: Annotated[Path, typer.Option(help="Picture to write: .png, .svg or .pdf.")],
    policy: Annotated[list[str] | None, typer.Option(help="Memories to show, several times.")] = None,
    budget: Annotated[float, typer.Option(help="Share of the full cache's tokens.")] = 0.25,
    seconds: Annotated[int, typer.Option(help="Length of the clip.")] = 48,
    seed: Annotated[int, typer.Option(help="Which clip.")] = 0,
    images: Annotated[
        Path, typer.Option(help="Folder of the Fashion-MNIST files (Debian: apt install dataset-fashion-mnist).")
    ] = SYSTEM,
) -> None:
    """Which frames of a clip a memory sheds: each as strong as it is held."""
    prepare()
    loaded = load_small(model)
    clip = make_clip(load_images("test", images), seconds, (seed, 2, 0))
    inputs = clip_inputs(clip)
    step = inputs["input_ids"].shape[1] // 16 * 16  # one update, at the end
    reports = {}
    for name in policy or ("streaming", "h2o", DEFAULT_MEMORY):
        with namm.attach(loaded, name, namm.Budget(fraction=budget), step) as memory:
            loaded(**inputs, logits_to_keep=1)
            reports[name] = kept(memory.cache, layout(loaded.config, inputs))
        console.print(f"[bold]{name}[/]\n{reports[name]}", highlight=False)
    console.print(f"The picture: {film_strip(clip, reports, out)}", soft_wrap=True)


if __name__ == "__main__":
    with one_message():
        app()
