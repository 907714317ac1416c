"""A conversation's requests have one key, other conversations' another; keys are spread and move only if they must."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from namm.serving.sticky import BEGINNING, CHAT, TEXT, key_of, order

SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = {"role": "user", "content": "What is a cache?"}
LATER = [{"role": "assistant", "content": "A store."}, {"role": "user", "content": "And then?"}]


def chat(*messages: dict[str, Any], owner: str = "a", **more: Any) -> str:
    return key_of(CHAT, owner, json.dumps({"model": "tiny", "messages": messages, **more}).encode())


def text(prompt: str | list[str], owner: str = "a") -> str:
    return key_of(TEXT, owner, json.dumps({"model": "tiny", "prompt": prompt}).encode())


def test_a_chat_keeps_its_key_while_it_grows():
    assert chat(SYSTEM, FIRST) == chat(SYSTEM, FIRST, *LATER) == chat(SYSTEM, FIRST, *LATER, temperature=0.5)


def test_other_chats_and_other_owners_have_other_keys():
    other = {"role": "user", "content": "What is a key?"}
    known = [chat(SYSTEM, FIRST), chat(SYSTEM, other), chat(FIRST), chat(SYSTEM, FIRST, owner="b")]
    assert len(set(known)) == len(known)


def test_a_text_in_parts_is_the_same_text():
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "a cache?"}]
    assert chat({"role": "user", "content": parts}) == chat(FIRST)


def test_a_text_keeps_its_key_while_it_grows():
    prompt = "x" * BEGINNING
    assert text(prompt) == text(prompt + " and more") == text([prompt])
    assert text(prompt) != text("y" + prompt)
    tokens = [*range(BEGINNING)]
    assert text(tokens) == text([*tokens, 1, 2]) == text([tokens, [5]])
    assert text(tokens) != text([7, *tokens])


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"\xff", b"7", b'{"messages": 1}', b'{"messages": [1]}', b'{"prompt": {}}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}], "prompt": "\\ud800"}', b"[" * 100_000,
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_what_nobody_can_serve_has_some_key(path: str, body: bytes):
    assert key_of(path, "a", body) == key_of(path, "a", body)


def test_keys_are_spread():
    first = Counter(order(str(key), 4)[0] for key in range(4000))
    assert set(first) == {0, 1, 2, 3}
    assert all(800 < count < 1200 for count in first.values())


def test_without_a_replica_only_its_keys_move():
    for key in map(str, range(200)):
        three, four = order(key, 3), order(key, 4)
        assert [number for number in four if number != 3] == three
