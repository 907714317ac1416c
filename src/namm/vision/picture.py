"""A picture of what a memory sheds: the clip as a film strip under each memory, frames as strong as they are held."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from namm.errors import ConfigurationError
from namm.packages import package
from namm.vision.clips import Clip
from namm.vision.layout import FRAME, PartReport

_ROWS = 2  # lines of film for a clip
_FORMATS = (".png", ".svg", ".pdf")


def film_strip(clip: Clip, reports: Mapping[str, PartReport], file: str | Path) -> Path:
    """Draw one panel for each memory; a frame that no head holds any more is white.

    Args:
        reports: by name, of the prompt of this clip.
        file: where to write the picture (png, svg or pdf).

    Raises:
        NotFoundError: matplotlib is not installed.
        ConfigurationError: the file's ending is none of these.
    """
    path = Path(file)
    if path.suffix not in _FORMATS:
        raise ConfigurationError(f"a picture, {', '.join(_FORMATS)}", str(path), "Choose one of these endings.")
    figure = package("matplotlib.figure", "vision").Figure(
        figsize=(14, 0.9 + 1.15 * len(reports)), layout="constrained"
    )
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
