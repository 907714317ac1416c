"""Text that is always there, split so that training never sees what is tested: Austen's novels, and Python's library.

Five novels of Jane Austen (public domain) ship with the package. Code is the standard library of the running Python,
its modules divided by a hash of their names; another version of Python has other modules, so rows record it.
"""

from __future__ import annotations

import hashlib
import lzma
import random
import re
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from namm.errors import ConfigurationError, NotFoundError, nearest

SPLITS = {
    "train": ("emma", "mansfield_park", "sense_and_sensibility"),
    "validation": ("pride_and_prejudice",),
    "test": ("persuasion",),
}
_SHARES = {"train": range(6), "validation": range(6, 8), "test": range(8, 10)}  # of the modules, in tenths
_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "encodings", "pydoc_data"}
SENTENCE = re.compile(r"(?<=[.!?])(?<!Mr\.)(?<!Mrs\.)(?<!Dr\.)(?<!St\.)\s+(?=[\"'A-Z])")  # where one ends


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


@lru_cache(maxsize=8)
def sentences(name: str) -> tuple[str, ...]:
    """The sentences of a shipped novel; the last one of a paragraph ends in a blank line."""
    return tuple(
        sentence + ("\n\n" if last else " ")
        for paragraph in paragraphs(name)
        for parts in (SENTENCE.split(paragraph),)
        for sentence, last in zip(parts, [False] * (len(parts) - 1) + [True], strict=True)
    )


@lru_cache(maxsize=3)
def modules(split: str) -> tuple[Path, ...]:
    """Source files of the standard library that belong to a split."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found = (path.relative_to(library) for path in sorted(library.rglob("*.py")))
    chosen = (path for path in found if not _LEFT_OUT & set(path.parts) and not path.name.startswith("_"))
    return tuple(library / path for path in chosen if _tenth(path) in _SHARES[check_split(split)])


def check_split(split: str) -> str:
    """`split`, or an error if there is none of that name."""
    if split not in SPLITS:
        raise ConfigurationError("a split", repr(split), nearest(split, SPLITS))
    return split


def passage(split: str, tokens: int, tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> list[str]:
    """Consecutive sentences of a novel of the split from a random place on, of at most `tokens` tokens together."""
    book = sentences(rng.choice(SPLITS[check_split(split)]))
    start = rng.randrange(len(book))
    return _filled((book[(start + step) % len(book)] for step in range(len(book))), tokens, tokenizer)


def code(split: str, tokens: int, tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> list[str]:
    """Consecutive lines of a library module of the split, of at most `tokens` tokens, from a random place on.

    Modules that are too short are passed over; if all are, the next ones follow.
    """
    order = list(modules(split))
    rng.shuffle(order)
    lines: list[str] = []
    for module in order:
        text = module.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        if sum(map(len, text)) > 6 * tokens or lines:
            start = 0 if lines else rng.randrange(max(1, len(text) // 3))
            lines += text[start:]
        if sum(map(len, lines)) > 8 * tokens:
            break
    return _filled(iter(lines), tokens, tokenizer)


def _filled(parts: Iterator[str], tokens: int, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Consecutive `parts` that fit into `tokens` tokens together, from the first that fits alone."""
    chosen: list[str] = []
    held = 0
    for part in parts:
        length = len(tokenizer.encode(part, add_special_tokens=False))
        if held + length <= tokens:
            chosen.append(part)
            held += length
        elif chosen:
            return chosen
    if not chosen:
        raise ConfigurationError(f"a sentence or line of at most {tokens} tokens", "none", "Ask for longer contexts.")
    return chosen


def _tenth(path: Path) -> int:
    return hashlib.sha256(path.as_posix().encode()).digest()[0] % 10
