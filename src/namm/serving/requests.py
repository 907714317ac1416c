"""What clients may send: OpenAI's fields as far as they are served, and a few of ours.

Fields that would change the answer and are not served are refused; fields that only describe a request are accepted
and left alone. A field that is null is as good as left out. Whatever a body holds, it is refused at its first error.
"""

from __future__ import annotations

import re
from collections.abc import Sized
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import from_json

from namm.serving.refusals import Refusal, invalid

_MOST_CONTAINERS = 100_000  # lists and objects of a body
_MOST_MESSAGES = 4096
_MOST_PARTS = 1024  # of a message; calls of a message as well
_MOST_TOOLS = 128
_MOST_STOPS = 16
_MOST_ANSWERS = 128  # to one prompt; prompts of one request as well
_MOST_LOGPROBS = 20  # alternatives to a token
_MOST_BIASES = 1024
LEAST = 0.01  # temperature above 0; smaller ones leave the range of float32
_ALTERNATIVE = re.compile(r"\[|^(constrained-)?(str|int)$")  # what pydantic calls a branch of a union
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)  # the last one may lack its end
_SHOWN = 100  # characters of what a client sent, in a refusal

Asked = TypeVar("Asked", bound="GenerationRequest")


def _at_most(count: int) -> BeforeValidator:
    """Looks at the number of entries of a dictionary before it looks at any of them."""

    def few(given: Any) -> Any:
        if isinstance(given, Sized) and len(given) > count:
            raise ValueError(f"expected at most {count:,} entries; got {len(given):,}")
        return given

    return BeforeValidator(few)


def _list(most: int, least: int = 0) -> Any:
    return Field(min_length=least, max_length=most, fail_fast=True)


Number = Annotated[float, Field(allow_inf_nan=False, strict=False)]
Nothing = Annotated[dict[str, Any], _at_most(0)]  # what clients send for "there is none"
Tokens = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, fail_fast=True)]


@cache
def _names(kind: type[BaseModel]) -> frozenset[str]:
    return frozenset(field.alias or name for name, field in kind.model_fields.items())


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        told = {name: value for name, value in given.items() if value is not None}
        unknown = next((name for name in told if name not in _names(cls)), None)
        if unknown is not None:  # pydantic would note each of a million
            raise ValueError(f"expected fields that are served here; got {unknown[:_SHOWN]!r}. Leave it out.")
        return told


class TextPart(_Strict):
    """A piece of a message; this server reads text."""

    type: Literal["text"]
    text: str
    cache_control: dict[str, Any] | None = None


class _FunctionCall(_Strict):
    name: str
    arguments: str


class _ToolCall(_Strict):
    id: str | None = None
    type: Literal["function"] = "function"
    function: _FunctionCall
    index: int | None = None


class ChatMessage(_Strict):
    """One turn of a chat, also one that came from a server."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], _list(_MOST_PARTS)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[_ToolCall], _list(_MOST_PARTS)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: Nothing | None = None
    function_call: Nothing | None = None
    cache_control: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> ChatMessage:
        if self.content is None and not self.tool_calls:
            raise ValueError("expected content, or tool calls of an assistant; got neither")
        return self


class _StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class Watch(_Strict):
    """`watch`: stream what the memory does as well, see the page at `/`."""

    watch: bool = False


class _Schema(_Strict):
    """A JSON schema, and what it is called."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema", default_factory=dict)
    strict: bool | None = None


class _ResponseFormat(_Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> _ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError('expected a json_schema with the type "json_schema", and with no other')
        return self


class GenerationRequest(_Strict):
    """What chats and completions have in common."""

    model: str
    stream: bool = False
    stream_options: _StreamOptions | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.1, le=10)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[Number, Field(ge=-100, le=100)]], _at_most(_MOST_BIASES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Annotated[list[str], _list(_MOST_STOPS)] | None = None
    n: Annotated[int, Field(ge=1, le=_MOST_ANSWERS)] | None = None
    user: str | None = None
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
    def _decent_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        for one in [stop] if isinstance(stop, str) else stop or ():
            if not 0 < len(one) <= 1000:
                raise ValueError(f"expected stop sequences of at least one character and at most 1,000; got {len(one)}")
        return stop

    @model_validator(mode="after")
    def _watches_one(self) -> GenerationRequest:
        if self.watched and self.answers > 1:
            raise ValueError("expected one answer to watch; got a request for several")
        return self

    @property
    def answers(self) -> int:
        """To each prompt."""
        return self.n or 1

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """What the answer's JSON has to follow; None for text."""
        return None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def watched(self) -> bool:
        return self.stream and self.namm is not None and self.namm.watch

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with what the answer cost."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    path: ClassVar[str] = "/v1/chat/completions"
    prompt_field: ClassVar[str] = "messages"
    default_most: ClassVar[int] = 1024  # tokens of an answer, where the client does not say

    messages: Annotated[list[ChatMessage], _list(_MOST_MESSAGES, least=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: Annotated[list[dict[str, Any]], _list(_MOST_TOOLS)] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: _ResponseFormat | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=_MOST_LOGPROBS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    metadata: Annotated[dict[str, str], _at_most(16)] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("expected top_logprobs with logprobs: true; got them alone")
        if self.shown_tools and self.schema_of_answer is not None:
            raise ValueError("expected either tools or an answer in JSON; got both")
        return self

    @property
    def likeliest(self) -> int | None:
        """Tokens to name in each place of the answer; None where no probabilities were asked for."""
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        form = self.response_format
        if form is None or form.type == "text":
            return None
        return {"type": "object"} if form.json_schema is None else form.json_schema.schema_

    @property
    def most(self) -> int | None:
        """Tokens of the answer at most, if the client says so."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def shown_tools(self) -> list[dict[str, Any]] | None:
        """The tools that the model is shown."""
        return None if self.tool_choice == "none" or not self.tools else self.tools


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`."""

    path: ClassVar[str] = "/v1/completions"
    prompt_field: ClassVar[str] = "prompt"
    default_most: ClassVar[int] = 16  # as OpenAI has it

    prompt: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[str], _list(_MOST_ANSWERS, least=1)]
        | Tokens
        | Annotated[list[Tokens], _list(_MOST_ANSWERS, least=1)]
    )
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    best_of: Literal[1] | None = None
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=_MOST_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _not_too_many(self) -> CompletionRequest:
        if (count := len(self.prompts) * self.answers) > _MOST_ANSWERS:
            raise ValueError(f"expected at most {_MOST_ANSWERS} answers, n to each prompt; got {count}")
        if self.watched and len(self.prompts) > 1:
            raise ValueError("expected one answer to watch; got a request for several")
        return self

    @property
    def likeliest(self) -> int | None:
        """Tokens to name in each place of the text; None where no probabilities were asked for."""
        return self.logprobs

    @property
    def most(self) -> int | None:
        """Tokens of the answer at most, if the client says so."""
        return self.max_tokens

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """Texts, or tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else self.prompt  # type: ignore[list-item, return-value]


def read(kind: type[Asked], body: bytes) -> Asked:
    """The request that a body holds.

    Raises:
        Refusal: the first thing that is wrong with it.
    """
    given = parse(body)
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _malformed(error) from error


def parse(body: bytes) -> Any:
    """The JSON of a body.

    Raises:
        Refusal: it is none, or holds too much.
    """
    _check_count(body)
    try:
        return from_json(body, allow_inf_nan=False, cache_strings="none")
    except ValueError as error:
        raise Refusal(
            400,
            "expected a body in JSON: UTF-8, no lone surrogates, finite numbers, at most 200 levels of nesting; "
            f"got {error}.",
            "invalid_json",
        ) from error


def _check_count(body: bytes) -> None:
    """Lists and objects are dear: each takes a hundred bytes and the time of the collector."""
    if body.count(b"[") + body.count(b"{") > _MOST_CONTAINERS:
        bare = _STRING.sub(b"", body)
        if (count := bare.count(b"[") + bare.count(b"{")) > _MOST_CONTAINERS:
            raise invalid(f"expected at most {_MOST_CONTAINERS:,} lists and objects; got {count:,}. Send less.")


def _malformed(error: ValidationError) -> Refusal:
    found = error.errors(include_url=False, include_input=False)
    deepest = max(found, key=lambda one: len(one["loc"]))  # of alternatives, the one that came closest
    message = deepest["msg"].removeprefix("Value error, ")
    place = ".".join(str(part)[:_SHOWN] for part in deepest["loc"] if not _ALTERNATIVE.search(str(part)))
    return invalid(f"{place}: {message}" if place else message, place or None)


def described(kind: type[ChatRequest] | type[CompletionRequest]) -> dict[str, Any]:
    """The body of a route, for OpenAPI: routes read their bodies themselves."""
    place = f"#/paths/{kind.path.replace('/', '~1')}/post/requestBody/content/application~1json/schema/$defs/{{model}}"
    schema = kind.model_json_schema(ref_template=place)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
