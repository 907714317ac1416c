"""A conversation's requests have one key, other conversations' another; keys are spread and move only if they must."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

from namm.serving.replicas import BEGINNING, key_of
from namm.serving.requests import ChatRequest, CompletionRequest, read
from namm.serving.routing import NUMBER, ConversationRouter, order

SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = {"role": "user", "content": "What is a cache?"}
LATER = [{"role": "assistant", "content": "A store."}, {"role": "user", "content": "And then?"}]


def chat(*messages: dict[str, Any], owner: str = "a", **more: Any) -> str:
    body = json.dumps({"model": "tiny", "messages": messages, **more}).encode()
    return key_of(read(ChatRequest, body), owner)


def text(prompt: Any, owner: str = "a") -> str:
    return key_of(read(CompletionRequest, json.dumps({"model": "tiny", "prompt": prompt}).encode()), owner)


def test_a_chat_keeps_its_key_while_it_grows():
    assert chat(SYSTEM, FIRST) == chat(SYSTEM, FIRST, *LATER) == chat(SYSTEM, FIRST, *LATER, temperature=0.5)


def test_other_chats_and_other_owners_have_other_keys():
    other = {"role": "user", "content": "What is a key?"}
    known = [chat(SYSTEM, FIRST), chat(SYSTEM, other), chat(FIRST), chat(SYSTEM, FIRST, owner="b"), chat(SYSTEM)]
    assert len(set(known)) == len(known)


def test_a_text_in_parts_is_the_same_text():
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "a cache?"}]
    assert chat({"role": "user", "content": parts}) == chat(FIRST)


def test_a_text_keeps_its_key_while_it_grows():
    prompt = "x" * BEGINNING
    assert text(prompt) == text(prompt + " and more") == text([prompt])
    assert text(prompt) != text("y" + prompt)
    assert text(prompt) != text(prompt, owner="b")
    tokens = [*range(BEGINNING)]
    assert text(tokens) == text([*tokens, 1, 2]) == text([tokens, [5]])
    assert text(tokens) != text([7, *tokens])


def test_keys_are_spread():
    first = Counter(order(f"key {number}/0", range(4))[0] for number in range(4000))
    assert set(first) == {0, 1, 2, 3}
    assert all(800 < count < 1200 for count in first.values())


def test_without_a_replica_only_its_keys_move():
    for key in (f"key {number}/0" for number in range(200)):
        three, four = order(key, range(3)), order(key, range(4))
        assert [number for number in four if number != 3] == three


def test_those_that_have_no_place_come_last():
    first = order("key/0", {2, 0, 7})
    assert [order(f"key/{full}", {2, 0, 7}) for full in range(4)] == [
        first, [*first[1:], first[0]], [first[2], *first[:2]], first,
    ]  # fmt: skip
    assert order("key/1", {5}) == [5]
    assert order("key/0", set()) == []
    assert sorted(order("", {2, 0, 7})) == [0, 2, 7]


def test_serve_is_told_all_replicas_in_the_order_of_the_key():
    """Those that take nothing are passed over by Serve, which tries one rank after the other."""
    router = object.__new__(ConversationRouter)
    replicas = [SimpleNamespace(replica_metadata={NUMBER: number}) for number in (2, 0, 1)]
    asked = SimpleNamespace(
        metadata=SimpleNamespace(session_id="some conversation/0"),
        routing_context=SimpleNamespace(should_backoff=False),
    )
    ranks = asyncio.run(router.choose_replicas(replicas, asked))
    assert [one.replica_metadata[NUMBER] for (one,) in ranks] == order("some conversation/0", range(3))
    assert asked.routing_context.should_backoff  # or a request that nobody takes keeps a processor busy
    assert asyncio.run(router.choose_replicas(replicas)) == [replicas]
