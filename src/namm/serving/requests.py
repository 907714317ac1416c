"""What clients may send: OpenAI's fields as far as they are served, and a few of ours.

Fields that would change the answer and are not served are refused; fields that only describe a request are accepted.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

MOST_STOPS = 4
LEAST = 0.01  # temperature above 0; smaller ones leave the range of float32


def _encodable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("expected text that is valid Unicode; got half of a surrogate pair") from error
    return text


Unicode = Annotated[str, AfterValidator(_encodable)]
Number = Annotated[float, Field(allow_inf_nan=False, strict=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Part(_Strict):
    """A piece of a message; this server reads text."""

    type: Literal["text"]
    text: Unicode


class FunctionCall(_Strict):
    name: Unicode
    arguments: Unicode


class ToolCall(_Strict):
    id: Unicode | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(_Strict):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Unicode | list[Part] | None = None
    name: Unicode | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Unicode | None = None
    reasoning_content: Unicode | None = None
    refusal: Unicode | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and not self.tool_calls:
            raise ValueError("expected content, or tool calls of an assistant; got neither")
        return self


class StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class Watch(_Strict):
    """`watch`: stream what the memory does as well, see the page at `/`."""

    watch: bool = False


class ResponseFormat(_Strict):
    type: Literal["text"]


class _Request(_Strict):
    """What chats and completions have in common."""

    model: Unicode
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.1, le=10)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[Number, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Unicode | Annotated[list[Unicode], Field(max_length=MOST_STOPS)] | None = None
    n: Literal[1] | None = None
    user: Unicode | None = None
    namm: Watch | None = None

    @field_validator("temperature")
    @classmethod
    def _not_tiny(cls, temperature: float | None) -> float | None:
        if temperature is not None and 0 < temperature < LEAST:
            raise ValueError(f"expected a temperature of 0, or at least {LEAST}; got {temperature}")
        return temperature

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        if bias and not all(key.isascii() and key.isdigit() and len(key) < 10 for key in bias):
            raise ValueError('expected token ids as keys, such as "50256"; got another key')
        return bias

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if stop is not None and "" in ([stop] if isinstance(stop, str) else stop):
            raise ValueError("expected stop sequences with at least one character; got an empty one")
        return stop

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def watched(self) -> bool:
        return self.namm is not None and self.namm.watch


class ChatRequest(_Request):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: Literal[False] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: Unicode | None = None
    safety_identifier: Unicode | None = None

    @property
    def most(self) -> int | None:
        """Tokens of the answer at most, if the client says so."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class CompletionRequest(_Request):
    """`POST /v1/completions`."""

    prompt: Annotated[Unicode, Field(min_length=1)] | Annotated[list[Unicode], Field(min_length=1, max_length=1)]
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None

    @property
    def most(self) -> int | None:
        """Tokens of the answer at most, if the client says so; OpenAI's default is 16."""
        return self.max_tokens if self.max_tokens is not None else 16

    @property
    def text(self) -> str:
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]
