"""A picture of what was kept of each class in each layer, a panel for each text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from namm.packages import package
from namm.report.forgetting import Forgetting, by_class

CLIPPED = 2.0  # powers of two


def class_heatmap(runs: dict[str, Forgetting], file: str | Path) -> Path:
    """Draw for each text the share kept of each class in each layer, against tokens read between the same updates.

    Raises:
        NotFoundError: matplotlib is not installed.
    """
    figures = package("matplotlib.figure", "report")
    colours = package("matplotlib.colors", "report").LinearSegmentedColormap.from_list(
        "preference", ["#b8600c", "#f6f6f6", "#1668b5"]
    )
    rows = {title: by_class(run) for title, run in runs.items()}
    heights = [len(classes) + 2 for classes in rows.values()]
    figure = figures.Figure(figsize=(10, 0.6 + 0.28 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(runs), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (title, run) in zip(panels, runs.items(), strict=True):
        image = panel.imshow(
            _powers(run), aspect="auto", cmap=colours, vmin=-CLIPPED, vmax=CLIPPED, interpolation="nearest"
        )
        panel.set_title(f"{title}: {run.mean():.0%} of the judged tokens kept", loc="left", fontsize=10)
        labels = [f"{row.name} ({row.tokens:,} tokens): {row.share:.0%}" for row in rows[title]]
        panel.set_yticks(range(len(labels)), labels, fontsize=8)
        step = max(1, len(run.layers) // 15)
        panel.set_xticks(range(0, len(run.layers), step), run.layers[::step], fontsize=8)
    panels[-1].set_xlabel("layer")
    bar = figure.colorbar(image, ax=panels, ticks=range(-2, 3), shrink=0.6)
    bar.set_label("kept, against tokens read between the same two updates")
    bar.ax.set_yticklabels(["1/4", "1/2", "1", "2", "4"])
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _powers(run: Forgetting) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Ratio among neighbours as a power of two, `[class, layer]`."""
    layers = [by_class(run, layer=layer) for layer in run.layers]
    ratios = np.array([[row.ratio_among_neighbours for row in rows] for rows in layers]).T
    return np.log2(np.clip(ratios, 2**-CLIPPED, 2**CLIPPED))
