"""The memory page: a window into what a memory holds while a model reads and answers, in one HTML file.

It shows recorded texts, or is served beside an OpenAI-compatible API and shows what happens there. Style and scripts
are files in `page/`; all of them are written into the one that comes out, which asks for nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from string import Template
from typing import Any, Literal, NotRequired, TypedDict

from namm.errors import ConfigurationError
from namm.report.trace import Event

_SCRIPTS = ("trace.js", "panel.js", "grid.js", "card.js", "timeline.js", "chat.js", "memory.js")


class Recording(TypedDict):
    """A text that was read, by one memory or by two that are shown side by side.

    Attributes:
        traces: events of each memory, see `namm.report.trace.record`.
        language: how the text is set; prose if left out.
    """

    title: str
    traces: list[list[Event]]
    language: NotRequired[Literal["prose", "code"]]


def memory_page(recordings: Iterable[Recording] = (), live: dict[str, Any] | None = None) -> str:
    """The page, as one HTML text.

    Args:
        recordings: what it shows if it is not live.
        live: if given, the page talks to the server it came from. May hold an `example`, {"text", "question"}, that
            a button puts into the chat, with a "title" of the text if it has one.

    Raises:
        ConfigurationError: neither recordings nor a server, or a recording of no or more than two memories.
    """
    shown = list(recordings)
    if live is None and not shown:
        raise ConfigurationError("recordings or a live page", "neither", "Record a text: namm.report.trace.record.")
    for recording in shown:
        if not 1 <= len(recording["traces"]) <= 2:
            raise ConfigurationError(
                f"one or two memories of {recording['title']!r}", f"{len(recording['traces'])}",
                "Write a page for each two that are to be compared.",
            )  # fmt: skip
    heading = "Inside the memory" if live is not None or len(shown) != 1 else shown[0]["title"]
    return Template(_asset("memory.html")).substitute(
        title=escape(f"{heading}, as a memory holds it" if heading != "Inside the memory" else heading),
        heading=escape(heading),
        mode="recorded" if live is None else "live",
        style=_asset("memory.css"),
        script="".join(_asset(name) for name in _SCRIPTS),
        data=_embedded({"live": live, "recordings": shown if live is None else []}),
    )


def _asset(name: str) -> str:
    return (files("namm.report") / "page" / name).read_text(encoding="utf-8")


def _embedded(data: object) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
