"""Three embedded texts to inspect: narrative, code and dialogue, of about 7,500 characters each."""

from __future__ import annotations

import importlib.util
from itertools import accumulate

from namm.errors import NotFoundError
from namm.tasks import SPLITS, paragraphs

_CHARACTERS = 7500
_MODULE = "zipapp"  # of the standard library's test split (`tasks.text.modules`): every class of token occurs


def embedded_samples() -> dict[str, str]:
    """Title -> text. All are of the test split, which no memory was evolved on."""
    book = SPLITS["test"][0]
    name = book.replace("_", " ").title()
    return {
        f"prose: {name}": _passage(book, dialogue=False),
        f"code: {_MODULE}.py": _module(_MODULE),
        f"dialogue: {name}": _passage(book, dialogue=True),
    }


def _passage(book: str, dialogue: bool) -> str:
    """The passage of the book with the most, or the least, text in quotation marks."""
    texts = paragraphs(book)
    spoken = [_quoted(text) for text in texts]
    ends = list(accumulate(len(text) for text in texts))
    best, chosen = -1.0, slice(0, 0)
    for start in range(len(texts)):
        before = ends[start - 1] if start else 0
        stop = next((i + 1 for i in range(start, len(texts)) if ends[i] - before >= _CHARACTERS), None)
        if stop is None:
            break
        share = sum(spoken[start:stop]) / (ends[stop - 1] - before)
        merit = share if dialogue else 1 - share
        if merit > best:
            best, chosen = merit, slice(start, stop)
    return "\n\n".join(texts[chosen])[:_CHARACTERS].rsplit(" ", 1)[0]


def _quoted(text: str) -> int:
    """Characters inside double quotation marks."""
    return sum(len(part) for part in text.split('"')[1::2])


def _module(name: str) -> str:
    spec = importlib.util.find_spec(name)
    source = spec.loader.get_source(name) if spec and hasattr(spec.loader, "get_source") else None  # type: ignore[union-attr]
    if source is None:
        raise NotFoundError(
            f"the source of Python's own module {name}", "an installation without it", "Name a text or a file to read."
        )
    return source
