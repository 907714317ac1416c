"""The index finds what looking at every text would find, with as many digests for thousands of texts as for one."""

from __future__ import annotations

import random

import pytest

from namm.serving import prefixes
from namm.serving.prefixes import BLOCK, Prefixes


def test_finds_what_a_look_at_all_finds():
    rng, index = random.Random(0), Prefixes()
    known: dict[str, tuple[str, bytes]] = {}  # in the order in which they were added
    for step in range(3000):
        group = rng.choice(["a", "b"])
        text = bytes(rng.choices(b"xy", k=3)) * rng.randint(0, BLOCK) + bytes(rng.choices(b"xy", k=rng.randint(0, 9)))
        if known and rng.random() < 0.4:
            name = rng.choice(list(known))
            index.remove(*known.pop(name), name)
        else:
            known[str(step)] = (group, text)
            index.add(group, text, str(step))
        asked = text + bytes(rng.choices(b"xy", k=rng.randint(0, 4)))
        fits = {n: t for n, (g, t) in known.items() if g == group and asked.startswith(t) and len(asked) > len(t)}
        longest = max(map(len, fits.values()), default=None)
        newest = next((name for name, text in reversed(fits.items()) if len(text) == longest), None)
        assert index.longest(group, asked) == newest
    for name, place in known.items():
        index.remove(*place, name)
    assert index.longest("a", b"xy" * BLOCK) is None
    assert not index._names
    assert not index._left


@pytest.mark.parametrize("count", [1, 5000])
def test_as_much_work_for_many_texts_as_for_one(monkeypatch: pytest.MonkeyPatch, count: int):
    """They begin alike, as chats with one system prompt do, so nothing but their ends tells them apart."""
    index, opening = Prefixes(), b"You are a helpful assistant. " * 40
    for number in range(count):
        index.add("a", opening + f"{number:06d}".encode(), str(number))
    looks = 0

    class Counting(dict):  # type: ignore[type-arg]
        def get(self, *args):
            nonlocal looks
            looks += 1
            return super().get(*args)

    monkeypatch.setattr(index, "_names", Counting(index._names))
    monkeypatch.setattr(index, "_left", Counting(index._left))
    assert index.longest("a", opening + b"000000" + b" and so on " * 40) == "0"
    assert index.longest("a", opening + b"none") is None
    blocks = sum(1 for _ in prefixes._digests("a", opening + b"000000" + b" and so on " * 40))
    assert looks < 2 * blocks
