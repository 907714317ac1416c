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


def unauthorised() -> Refusal:
    return Refusal(
        401, "expected a known API key; got none or another. Send the header 'Authorization: Bearer KEY'.",
        "invalid_api_key",
    )  # fmt: skip


def no_host() -> Refusal:
    return Refusal(400, "expected one header Host with a name or an address; got none such. Send one.", "invalid_host")


def other_host(host: str) -> Refusal:
    return Refusal(
        421, f"expected a name of this server, such as localhost or its address; got {host[:100]!r}. Its operator "
        "allows another with --allow-host.", "unknown_host",
    )  # fmt: skip


def foreign_origin(origin: str) -> Refusal:
    return Refusal(
        403, f"expected a page of this server, or of an origin it allows; got {origin[:100]!r}. Its operator allows it "
        "with --allow-origin.", "unknown_origin",
    )  # fmt: skip


def too_slow(seconds: float) -> Refusal:
    return Refusal(408, f"expected the whole body within {seconds:g} s; got a part. Send it again.", "body_too_slow")


def too_many_bodies(most: int) -> Refusal:
    return Refusal(
        429, f"expected at most {most} bodies of this key on their way at once; got more. Try again in 1 s.",
        "too_many_bodies", retry_after=1,
    )  # fmt: skip


def too_large(limit: int) -> Refusal:
    return Refusal(413, f"expected a body of at most {limit:,} bytes; got more. Send less.", "body_too_large")


def not_json() -> Refusal:
    return Refusal(
        415, "expected a body in JSON; got another type. Send the header 'Content-Type: application/json'.",
        "unsupported_media_type",
    )  # fmt: skip


def bad_json(error: ValueError) -> Refusal:
    return Refusal(
        400,
        "expected a body in JSON: UTF-8, no lone surrogates, finite numbers, at most 200 levels of nesting; "
        f"got {error}.",
        "invalid_json",
    )


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


def full_queue(own: int, seconds: int) -> Refusal:
    return Refusal(
        429, f"expected a place in the queue; got {own} requests of this key that wait already, in a queue that is "
        f"full. Try again in {seconds} s.", "queue_full", retry_after=seconds,
    )  # fmt: skip


def generation_failed(ident: str) -> Refusal:
    return Refusal(
        500, f"expected an answer; got a fault of the server, which its log tells under {ident}. Send the request "
        "again.", "generation_failed",
    )  # fmt: skip


def not_removed(ident: str) -> Refusal:
    return Refusal(
        500, f"expected the file of {ident} to be removed; got an error of the disk. It is forgotten until the server "
        "is started again: tell its operator, whose log has the reason.", "not_removed",
    )  # fmt: skip


def draining() -> Refusal:
    return Refusal(
        503, "expected a server that takes requests; got one that is shutting down. Try again shortly.",
        "shutting_down", retry_after=5,
    )  # fmt: skip
