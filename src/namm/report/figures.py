"""Figures, drawn by Matplotlib: as files, or as SVG inside a page, which they take the dark colours from."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from namm.report.forgetting import Forgetting

# The style sheet may have another value for each of these names, and has one in the dark. Lines are Okabe and Ito's,
# made darker for contrast.
COLOURS = {
    "ink": "#1c2126",
    "soft": "#59626c",
    "grid": "#e9e8e3",
    "paper": "#f7f6f2",
    "plain": "#7d8691",
    "learned-0": "#c2410c",
    "learned-1": "#8a3ffc",
    "learned-2": "#9b1c4a",
    "line-0": "#0072b2",
    "line-1": "#009070",
    "line-2": "#b07a00",
    "line-3": "#b0568f",
    "line-4": "#3c93c8",
    "line-5": "#6f7d1c",
}
_MORE, _LESS = (22, 104, 181), (190, 96, 8)  # kept more than others, and less
_CLIPPED = 2.0  # powers of two
_BINS, _SHADES = 240, 65
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "namm",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["ink"],
    "xtick.color": COLOURS["ink"],
    "ytick.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["soft"],
}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in the style of the pages; a name in any alphabet is text, and a dollar sign is one."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the page's font may have it
        yield


def save(figure: Figure, file: str | Path) -> Path:
    """Write a figure into a file: png, svg or pdf."""
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


# -- SVG in a page -----------------------------------------------------------------------------------------------------


def svg(figure: Figure, name: str, described: str, titles: Mapping[str, str] | None = None) -> str:
    """The figure as an SVG element; its text stays text, and its colours are variables of the style sheet.

    Args:
        name: one that no other figure of the page has.
        described: in words, for who cannot see it; empty if the page says it.
        titles: what is told of an artist where the pointer is over it, by its `gid`.
    """
    written = StringIO()
    with drawing():
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(written.getvalue())
    for parent in list(root.iter()):
        for child in [one for one in parent if one.tag.endswith(("}metadata", "}style", "}clipPath"))]:
            parent.remove(child)  # its style would be that of the whole page
    for element in root.iter():
        _make_inline(element, name)
        title = (titles or {}).get(element.attrib.pop("gid", ""))
        if title is not None:
            element.set("class", "told")
            ElementTree.SubElement(element, "title").text = title
    root.attrib = {"viewBox": root.attrib["viewBox"]}
    root.attrib |= {"role": "img", "aria-label": described} if described else {"aria-hidden": "true"}
    return ElementTree.tostring(root, encoding="unicode", method="html")


def _make_inline(element: ElementTree.Element, name: str) -> None:
    """Make an element of an SVG file one of a page: no name spaces, and ids of its own."""
    element.tag = element.tag.rpartition("}")[2]
    element.text, element.tail = (element.text or "").strip("\n "), None
    attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    if element.tag == "g" and "id" in attributes:
        attributes["gid"] = attributes.pop("id")
    elif "id" in attributes:
        attributes["id"] = f"{name}-{attributes['id']}"
    if attributes.get("href", "").startswith("#"):
        attributes["href"] = f"#{name}-{attributes['href'][1:]}"
    attributes.pop("clip-path", None)  # nothing is drawn outside
    for key in ("d", "x", "y"):
        if key in attributes:
            attributes[key] = re.sub(r"\d+\.\d+", lambda found: f"{float(found.group()):.2f}", attributes[key])
    if "style" in attributes:
        attributes["style"] = _recoloured(attributes["style"], mixed=element.tag == "text")
    element.attrib = attributes


def _recoloured(style: str, mixed: bool) -> str:
    """`mixed` with ink: letters in the colour of their line would be too pale to read."""
    names = {value: name for name, value in COLOURS.items()}

    def variable(found: re.Match[str]) -> str:
        name = names.get(found.group())
        if name is None:
            return found.group()
        colour = f"var(--{name}, {found.group()})"
        return f"color-mix(in srgb, {colour} 72%, var(--ink))" if mixed and name not in ("ink", "soft") else colour

    return re.sub(r"#[0-9a-f]{6}\b", variable, style)


# -- what was kept -----------------------------------------------------------------------------------------------------


def kept_heatmap(
    memories: dict[str, list[list[list[int]]]], tokens: int, file: str | Path, marked: tuple[int, int] | None = None
) -> Path:
    """Draw what was kept: a panel for each memory, a row for each layer and kv head, the text from left to right.

    Args:
        memories: for each name, the token positions held, `[layer][kv_head]`.
        tokens: length of the text.
        file: where to write the picture (png, svg or pdf).
        marked: first and last token of a place to mark, such as the needle.
    """
    from matplotlib.figure import Figure

    with drawing():
        figure = Figure(figsize=(11, 1.2 + 2.2 * len(memories)), layout="constrained")
        panels = figure.subplots(len(memories), 1, sharex=True, squeeze=False)[:, 0]
        edges = np.linspace(0, tokens, min(_BINS, tokens) + 1)
        for panel, (name, layers) in zip(panels, memories.items(), strict=True):
            rows = [np.histogram(head, edges)[0] / np.diff(edges) for layer in layers for head in layer]
            heads = len(layers[0])
            image = panel.imshow(
                np.array(rows),
                aspect="auto",
                cmap="Blues",
                vmin=0,
                vmax=1,
                interpolation="nearest",
                extent=(0, tokens, len(layers), 0),
            )
            kept = sum(len(head) for layer in layers for head in layer) / (len(rows) * tokens)
            panel.set_title(f"{name}: {kept:.0%} of the slots kept", loc="left", fontsize=10)
            panel.set_ylabel(f"layer\n({heads} kv head{'s' if heads > 1 else ''} each)", fontsize=8)
            if marked:
                end = max(marked[1], marked[0] + tokens / _BINS)
                panel.axvspan(marked[0], end, color="tab:orange", alpha=0.45, lw=0)
        panels[-1].set_xlabel("token of the text" + (" (orange: the hidden fact)" if marked else ""))
        figure.colorbar(image, ax=panels, label="share kept", shrink=0.6)
        return save(figure, file)


def class_heatmap(runs: Mapping[str, Forgetting]) -> Figure:
    """What was kept of each class in each layer, against tokens read between the same updates; a panel a text."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    from namm.report.forgetting import by_class

    strength = np.abs(np.linspace(-1, 1, _SHADES))[:, None]  # nothing in the middle, on any paper
    hue = np.where(np.arange(_SHADES)[:, None] < _SHADES // 2, [_LESS], [_MORE]) / 255
    colours = ListedColormap(np.hstack([hue, strength]), "kept")
    rows = {title: by_class(run) for title, run in runs.items()}
    heights = [len(classes) for classes in rows.values()]
    with drawing():
        figure = Figure(figsize=(10, 0.9 + 0.24 * sum(heights) + 0.65 * len(runs)), layout="constrained")
        panels = figure.subplots(len(runs), 1, squeeze=False, height_ratios=heights)[:, 0]
        for panel, (title, run) in zip(panels, runs.items(), strict=True):
            powers = _powers(run)
            image = panel.imshow(
                powers, aspect="auto", cmap=colours, vmin=-_CLIPPED, vmax=_CLIPPED, interpolation="none"
            )
            panel.set_title(f"{title}: {100 * run.mean():.0f} % of the judged tokens kept", loc="left", fontsize=10)
            labels = [f"{row.name} ({row.tokens:,} tokens): {100 * row.share:.0f} %" for row in rows[title]]
            panel.set_yticks(range(len(labels)), labels, fontsize=8)
            step = max(1, len(run.layers) // 15)
            panel.set_xticks(range(0, len(run.layers), step), run.layers[::step], fontsize=8)
            panel.tick_params(length=2)
        panels[-1].set_xlabel("layer", fontsize=9)
        bar = figure.colorbar(image, ax=panels, ticks=range(-2, 3), shrink=0.6, aspect=24)
        for part in bar.ax.collections:
            part.set(antialiased=False)  # shades that let the paper through would show their seams
        bar.set_label("kept, against tokens read between the same two updates", fontsize=8)
        bar.ax.set_yticklabels(["1/4", "1/2", "1", "2", "4"], fontsize=8)
    return figure


def _powers(run: Forgetting) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Ratio among neighbours as a power of two, `[class, layer]`."""
    from namm.report.forgetting import by_class

    layers = [by_class(run, layer=layer) for layer in run.layers]
    ratios = np.array([[row.ratio_among_neighbours for row in rows] for rows in layers]).T
    return np.log2(np.clip(ratios, 2**-_CLIPPED, 2**_CLIPPED))
