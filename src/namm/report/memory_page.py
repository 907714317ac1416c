"""The memory page: a window into what a memory holds while a model reads and answers, in one HTML file.

It shows recorded texts, or is served beside an OpenAI-compatible API and shows what happens there. Its parts are files
in `templates/`; all of them are written into the one that comes out, which asks for nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NotRequired, TypedDict

from namm.errors import ConfigurationError
from namm.report.forgetting import FEW, Forgetting, by_class, percent, times
from namm.report.page import fill
from namm.report.token_classes import CLASSES
from namm.trace import Event

_SCRIPTS = ("trace.js", "panel.js", "grid.js", "classes.js", "card.js", "timeline.js", "chat.js", "memory.js")
_STRONGEST = 4.0  # ratio of the full tint; its inverse likewise


class Recording(TypedDict):
    """A text that was read, by one memory or by two that are shown side by side.

    Attributes:
        traces: events of each memory, see `namm.report.recording.record`.
        language: how the text is set; prose if left out.
        classes: the class of each token; tells what is kept of each.
    """

    title: str
    traces: list[list[Event]]
    language: NotRequired[Literal["prose", "code"]]
    classes: NotRequired[list[str]]


def memory_page(
    recordings: Iterable[Recording] = (),
    live: dict[str, Any] | None = None,
    runs: Mapping[str, Forgetting] | None = None,
    layer: int | None = None,
) -> str:
    """The page, as one HTML text.

    Args:
        recordings: what it shows if it is not live.
        live: if given, the page talks to the server it came from. May hold an `example`, {"text", "question"}, that
            a button puts into the chat, with a "title" of the text if it has one.
        runs: the texts, by title, whose classes of tokens are compared.
        layer: the layer that is shown first; all together if left out.

    Raises:
        ConfigurationError: neither recordings nor a server, or a recording of no or more than two memories.
    """
    shown = list(recordings)
    if live is None and not shown:
        raise ConfigurationError("recordings or a live page", "neither", "Record a text: namm.report.recording.record.")
    for recording in shown:
        if not 1 <= len(recording["traces"]) <= 2:
            raise ConfigurationError(
                f"one or two memories of {recording['title']!r}",
                f"{len(recording['traces'])}",
                "Write a page for each two that are to be compared.",
            )
    heading = "Inside the memory" if live is not None or len(shown) != 1 else shown[0]["title"]
    values = {
        "title": f"{heading}, as a memory holds it" if heading != "Inside the memory" else heading,
        "heading": heading,
        "scripts": _SCRIPTS,
        "runs": runs,
        "few": FEW,
        "data": {"live": live, "recordings": []}
        if live is not None
        else {"live": None, "recordings": shown, "layer": layer, "classes": CLASSES},
    }
    if runs:
        values |= _comparison(runs, layer)
    return fill("memory.html", values, {"percent": _percent, "times": times, "tone": _tone, "strength": _strength})


def _comparison(runs: Mapping[str, Forgetting], layer: int | None) -> dict[str, Any]:
    """Classes against texts, and the figure of classes against layers."""
    from namm.report.figures import class_heatmap, svg

    found = [{row.name: row for row in by_class(run, layer=layer)} for run in runs.values()]
    present = [name for name in CLASSES if any(name in rows for rows in found)]
    return {
        "layer": layer,
        "compared": [(name, [rows.get(name) for rows in found]) for name in present],
        "figure": svg(class_heatmap(runs), "layers", "what was kept of each class, layer by layer"),
        "place": "in all layers" if layer is None else f"in layer {layer}",
    }


def _percent(share: float) -> str:
    return percent(share).replace("%", " %")


def _tone(ratio: float) -> str:
    """Where more than usual was kept, and where less."""
    return "" if math.isnan(ratio) else "more" if ratio >= 1 else "less"


def _strength(ratio: float) -> str:
    """The deeper, the further from 1."""
    return f"{min(1.0, abs(math.log(ratio, _STRONGEST))) if ratio > 0 else 1.0:.2f}"
