"""A heat map of what was kept: one row for each layer and kv head, the text from left to right."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from namm.packages import package

BINS = 240


def kept_heatmap(
    memories: dict[str, list[list[list[int]]]], tokens: int, file: str | Path, marked: tuple[int, int] | None = None
) -> Path:
    """Draw one panel for each memory.

    Args:
        memories: for each name, the token positions held, `[layer][kv_head]`.
        tokens: length of the text.
        file: where to write the picture (png, svg or pdf).
        marked: first and last token of a place to mark, such as the needle.

    Raises:
        NotFoundError: matplotlib is not installed.
    """
    figure = package("matplotlib.figure", "report").Figure(
        figsize=(11, 1.2 + 2.2 * len(memories)), layout="constrained"
    )
    panels = figure.subplots(len(memories), 1, sharex=True, squeeze=False)[:, 0]
    edges = np.linspace(0, tokens, min(BINS, tokens) + 1)
    for panel, (name, layers) in zip(panels, memories.items(), strict=True):
        rows = [np.histogram(head, edges)[0] / np.diff(edges) for layer in layers for head in layer]
        heads = len(layers[0])
        image = panel.imshow(
            np.array(rows), aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest",
            extent=(0, tokens, len(layers), 0),
        )  # fmt: skip
        kept = sum(len(head) for layer in layers for head in layer) / (len(rows) * tokens)
        panel.set_title(f"{name}: {kept:.0%} of the slots kept", loc="left", fontsize=10)
        panel.set_ylabel(f"layer\n({heads} kv head{'s' if heads > 1 else ''} each)", fontsize=8)
        if marked:
            panel.axvspan(marked[0], max(marked[1], marked[0] + tokens / BINS), color="tab:orange", alpha=0.45, lw=0)
    panels[-1].set_xlabel("token of the text" + (" (orange: the hidden fact)" if marked else ""))
    figure.colorbar(image, ax=panels, label="share kept", shrink=0.6)
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
