"""Shipped public-domain text: five novels of Jane Austen, split so that training never sees test text."""

from __future__ import annotations

import lzma
from functools import lru_cache
from importlib.resources import files

from namm.errors import NotFoundError, nearest

SPLITS = {
    "train": ("emma", "mansfield_park", "sense_and_sensibility"),
    "validation": ("pride_and_prejudice",),
    "test": ("persuasion",),
}


@lru_cache(maxsize=8)
def novel(name: str) -> str:
    """The text of a shipped novel."""
    known = [book for books in SPLITS.values() for book in books]
    if name not in known:
        raise NotFoundError("a shipped novel", repr(name), nearest(name, known))
    return lzma.decompress(files("namm.data").joinpath("texts", f"{name}.txt.xz").read_bytes()).decode()


@lru_cache(maxsize=8)
def paragraphs(name: str) -> tuple[str, ...]:
    """The paragraphs of a shipped novel, each on one line, headings left out."""
    blocks = (" ".join(block.split()) for block in novel(name).split("\n\n"))
    return tuple(block for block in blocks if len(block) > 40)
