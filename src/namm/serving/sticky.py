"""Which replica has a conversation: the one that its beginning names, as long as that one is there.

A conversation only grows, so its beginning is the same in every request that goes on with it:

* of a chat, the messages up to the first one of a user, see `_opening`;
* of a text, its first `BEGINNING` characters or tokens.

Together with the owner it is the key of a request. Keys are spread by rendezvous hashing: each key has an order of all
replicas, and goes to the first that is there. When one is missing, its keys move and all others stay.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from namm.serving.refusals import Refusal
from namm.serving.requests import ChatRequest, CompletionRequest, parse

CHAT, TEXT = ChatRequest.path, CompletionRequest.path
BEGINNING = 256  # characters, or tokens


def order(key: str, replicas: int) -> list[int]:
    """All replicas, in the order in which they are asked to serve this key."""
    return sorted(range(replicas), key=lambda number: _digest(f"{number} {key}"), reverse=True)


def key_of(path: str, owner: str, body: bytes) -> str:
    """The key of a request. Any will do for what nobody can serve: a replica refuses it with the reason."""
    asked = _read(body)
    beginning = _opening(asked.get("messages")) if path == CHAT else _beginning(asked.get("prompt"))
    return _digest(f"{owner} {beginning}")


def _opening(messages: Any) -> str:
    """A digest of a chat's messages up to the first one of a user: roles and texts, whichever way they are sent."""
    said = []
    for message in messages if isinstance(messages, list) else []:
        if not isinstance(message, Mapping):
            break
        said.append([str(message.get("role")), _text(message.get("content"))])
        if message.get("role") == "user":
            break
    return _digest(json.dumps(said))


def _text(content: Any) -> str:
    """A message's text, given as a whole or in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text")) for part in content if isinstance(part, Mapping))
    return str(content)


def _beginning(prompt: Any) -> str:
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]  # of several
    begun = prompt[:BEGINNING] if isinstance(prompt, (str, list)) else prompt
    return _digest(json.dumps(str(begun)))


def _read(data: bytes) -> dict[str, Any]:
    try:
        found = parse(data)
    except Refusal:
        return {}
    return found if isinstance(found, dict) else {}


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
