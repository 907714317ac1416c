"""Finds the longest of many known texts that another text begins with; how many are known makes no difference.

As in prefix caching: a text is cut into blocks, and the digest of a block covers all that comes before it as well. A
known text is filed under the digest of its last whole block and what is left behind that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from hashlib import sha256

BLOCK = 128  # bytes


class Prefixes:
    """Names of texts, which are bytes. Texts of different groups never meet; one text may have several names."""

    def __init__(self) -> None:
        self._names: dict[tuple[bytes, bytes], dict[str, None]] = {}  # (digest, left) -> names, the newest last
        self._left: dict[bytes, Counter[int]] = {}  # digest -> how many bytes are left behind it, and how often

    def add(self, group: str, text: bytes, name: str) -> None:
        digest, left = _place(group, text)
        names = self._names.setdefault((digest, left), {})
        if name not in names:
            names[name] = None
            self._left.setdefault(digest, Counter())[len(left)] += 1

    def remove(self, group: str, text: bytes, name: str) -> None:
        """
        Raises:
            KeyError: the text has no such name.
        """
        digest, left = _place(group, text)
        names, lengths = self._names[digest, left], self._left[digest]
        del names[name]
        lengths[len(left)] -= 1
        if not names:
            del self._names[digest, left]
        if not lengths[len(left)]:
            del lengths[len(left)]
        if not lengths:
            del self._left[digest]

    def longest(self, group: str, text: bytes) -> str | None:
        """The newest name of the longest text that this one begins with and goes beyond."""
        for end, digest in reversed(list(_digests(group, text))):
            for length in sorted(self._left.get(digest, ()), reverse=True):
                names = self._names.get((digest, text[end : end + length]), {})
                if names and end + length < len(text):
                    return next(reversed(names))
        return None


def _digests(group: str, text: bytes) -> Iterator[tuple[int, bytes]]:
    """Of nothing and of each whole block: where it ends, and the digest of all up to there."""
    running = sha256(f"{len(group)} {group}".encode())
    yield 0, running.digest()
    for start in range(0, len(text) - BLOCK + 1, BLOCK):
        running.update(text[start : start + BLOCK])
        yield start + BLOCK, running.digest()


def _place(group: str, text: bytes) -> tuple[bytes, bytes]:
    *_, (end, digest) = _digests(group, text)
    return digest, text[end:]
