"""Requests that no server should serve, and the statuses that say why."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
CONVERSATIONS = "/v1/conversations"


@dataclass(frozen=True)
class Bad:
    """A request of httpx that is refused.

    Attributes:
        statuses: with one of which.
        key: what to send instead of the client's own key; None for no key at all.
    """

    name: str
    statuses: tuple[int, ...]
    path: str = CHAT
    method: str = "POST"
    content: bytes | None = None
    json: Any = None
    pieces: Callable[[], AsyncIterator[bytes]] | None = None
    headers: tuple[tuple[str, str], ...] = ()
    key: str | None = "own"


def bad_requests(model: str, context: int, most: int, body: int, rng: random.Random) -> list[Bad]:
    """One of every kind, for a server with these limits."""
    fine = {"model": model, "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 4}

    def chat(name: str, status: int = 400, **changed: Any) -> Bad:
        return Bad(name, (status,), json=fine | changed)

    def said(name: str, **message: Any) -> Bad:
        return chat(name, messages=[{"role": "user"} | message])

    async def without_length() -> AsyncIterator[bytes]:
        for _ in range(body // 1000 + 2):
            yield b" " * 1000

    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    return [
        Bad("malformed", (400,), content=b'{"model": "x", "messages": ['),
        Bad("empty", (400,), content=b""),
        Bad("not utf-8", (400,), content=b'{"model": "\xff\xfe", "messages": []}'),
        Bad("nested", (400,), content=b"[" * 30_000),
        Bad("not an object", (400,), json=[1, 2]),
        Bad("null", (400,), content=b"null"),
        Bad("no number", (400,), content=json.dumps(fine | {"temperature": float("nan")}).encode()),
        Bad(
            "half a surrogate pair",
            (400,),
            content=rb'{"model": "m", "messages": [{"role": "user", "content": "\ud800"}]}',
        ),
        Bad("a form", (400, 415), content=b"model=x", headers=(("Content-Type", "application/x-www-form-urlencoded"),)),
        Bad("wrong key", (401,), json=fine, key="wrong"),
        Bad("no key", (401,), json=fine, key=None),
        Bad("no key, list", (401,), path=CONVERSATIONS, method="GET", key=None),
        Bad("another scheme", (401,), json=fine, headers=(("Authorization", "Basic a2V5OmtleQ=="),), key=None),
        chat("unknown model", 404, model="gpt-none"),
        chat("a path as model", 404, model="../../etc/passwd"),
        *(chat(f"max_tokens {n!r}", max_tokens=n) for n in (-1, 0, 10**9, 10**30, 1.5, "5", True, most + 1)),
        *(chat(f"temperature {t!r}", temperature=t) for t in (-1, 5, "hot")),
        chat("no answers", n=0),
        chat("no messages", messages=[]),
        chat("an unknown field", colour="red"),
        chat("logit_bias of no token", logit_bias={"99999999": 1}),
        chat("logit_bias of a word", logit_bias={"word": 1}),
        chat("an empty stop", stop=""),
        chat("many stops", stop=list("abcdefghijklmnopqrstuvwxyz")),
        chat("a format nobody has", response_format={"type": "poem"}),
        Bad("an empty text", (400,), path=TEXT, json={"model": model, "prompt": ""}),
        Bad("a text too long", (400,), path=TEXT, json={"model": model, "prompt": "word " * context}),
        Bad("no texts", (400,), path=TEXT, json={"model": model, "prompt": []}),
        said("no content"),
        said("a number as content", content=5),
        said("a picture", content=image),
        said("a role nobody has", role="wizard", content="Hello."),
        said("too long", content="word " * context),
        Bad("too large", (413,), content=b"x" * (body + 1)),
        Bad("too large, no length", (413,), pieces=without_length),
        Bad("not for GET", (405,), method="GET"),
        Bad("no such path", (404,), path="/v1/embeddings", json=fine),
        Bad("no such conversation", (404,), path=f"{CONVERSATIONS}/conv-none", method="DELETE"),
        Bad("a path as conversation", (404,), path=f"{CONVERSATIONS}/..%2f..%2fetc%2fpasswd", method="DELETE"),
        Bad("an upload", (405,), path=CONVERSATIONS, content=rng.randbytes(2000)),
    ]
