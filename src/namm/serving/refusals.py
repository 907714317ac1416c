"""Whatever a server refuses, in OpenAI's error format: the status, a message with the way out, and a code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse


class Refusal(Exception):
    """A request that is not served, and why.

    Attributes:
        status: of HTTP.
        code: a word for programs.
        param: the field of the request that it is about.
        retry_after: seconds after which the same request may be served.
    """

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    def __reduce__(self) -> tuple[type[Refusal], tuple[int, str, str, str | None, int | None]]:
        return type(self), (self.status, self.message, self.code, self.param, self.retry_after)

    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def json(self) -> str:
        return json.dumps(self.body())

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def answer_of(refusal: Refusal, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A refusal as a client gets it."""
    return JSONResponse(refusal.body(), refusal.status, {**refusal.headers(), **(headers or {})})


def invalid(message: str, param: str | None = None) -> Refusal:
    return Refusal(400, message, "invalid_value", param)


def unknown_model(name: str, known: list[str]) -> Refusal:
    return Refusal(
        404, f"expected a model served here; got {name[:100]!r}. Known: {', '.join(known)}.", "model_not_found", "model"
    )


def too_large(limit: int) -> Refusal:
    return Refusal(413, f"expected a body of at most {limit:,} bytes; got more. Send less.", "body_too_large")


def too_long(prompt: int, asked: int | None, context: int, param: str) -> Refusal:
    """`asked`: tokens of the answer; None for a prompt of which only `prompt` tokens were counted."""
    got = f"more than {prompt:,}" if asked is None else f"{prompt:,} and {asked:,}"
    return Refusal(
        400,
        f"expected at most {context:,} tokens, prompt and answer together; got {got}. "
        "Shorten the prompt or lower max_tokens.",
        "context_length_exceeded",
        param,
    )


def never_fits(needed: int, limit: int, prompt: int, asked: int) -> Refusal:
    return Refusal(
        400,
        f"expected a request that holds at most {limit:,} bytes; got one that may hold {needed:,} "
        f"({prompt:,} tokens and an answer of {asked:,}). Shorten the prompt, lower max_tokens, or ask the operator "
        "for a larger --memory-limit.",
        "memory_limit_exceeded",
    )


def generation_failed(ident: str) -> Refusal:
    return Refusal(
        500, f"expected an answer; got a fault of the server, which its log tells under {ident}. Send the request "
        "again.", "generation_failed",
    )  # fmt: skip


def draining() -> Refusal:
    return Refusal(
        503, "expected a server that takes requests; got one that is shutting down. Try again shortly.",
        "shutting_down", retry_after=5,
    )  # fmt: skip
