"""Prompts as the model reads them: messages in its chat template, then tokens, never more than it has a context for.

All of this can take as long as its text is long, so it belongs into a thread of its own, see `Service`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from pydantic_core import from_json

from namm.compat import ResponseParser, response_parser
from namm.serving.host import Host
from namm.serving.refusals import Refusal, invalid, too_long
from namm.serving.requests import ChatMessage, ChatRequest, CompletionRequest, TextPart

_CHARACTERS = 8  # of a token, more than most texts have
_OF_TEMPLATES = (
    TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError,
)  # fmt: skip


@dataclass(frozen=True)
class _Prompt:
    """What an answer goes on from."""

    text: str
    ids: list[int]


def prompts_of(request: ChatRequest | CompletionRequest, host: Host) -> list[_Prompt]:
    """What the request is about.

    Raises:
        Refusal: texts that are far too long, tokens that the model does not know, messages that it cannot be shown.
    """
    if isinstance(request, ChatRequest):
        text = _render(request, host)
        return [_Prompt(text, _encode(text, host, "messages", special=False))]
    return [
        _Prompt(one, _encode(one, host, "prompt", special=True)) if isinstance(one, str) else _of_tokens(one, host)
        for one in request.prompts
    ]


def _of_tokens(ids: list[int], host: Host) -> _Prompt:
    if len(ids) > host.context:
        raise too_long(len(ids), 0, host.context, "prompt")
    if max(ids) >= host.token_count:
        raise invalid(f"expected token ids below {host.token_count:,}; got {max(ids):,}.", "prompt")
    return _Prompt(host.text_of(ids, special=True), ids)


def _encode(text: str, host: Host, param: str, special: bool) -> list[int]:
    """The tokens of a prompt.

    Of a long text a beginning is read first: if that makes twice the tokens that fit, the whole does not fit, however
    the tokens at its end may change.

    Args:
        special: whether the tokenizer adds those that stand around a text; a chat template has written them.

    Raises:
        Refusal: the text is far too long.
    """
    length = _CHARACTERS * host.context
    while length < len(text):
        found = len(host.tokens(text[:length], special))
        if found > 2 * host.context:
            raise too_long(found, None, host.context, param)
        length *= 4
    return host.tokens(text, special)


def _render(request: ChatRequest, host: Host) -> str:
    """The prompt of a chat as text.

    Raises:
        Refusal: the model's chat template does not take these messages, tools or options.
    """
    options = request.chat_template_kwargs or {}
    if reserved := set(options) & set(inspect.signature(host.tokenizer.apply_chat_template).parameters):
        raise invalid(
            f"expected names that only the model's chat template knows; got {min(reserved)!r}. Leave it out.",
            "chat_template_kwargs",
        )
    if host.tokenizer.chat_template is None:
        raise invalid("expected a model with a chat template; this one has none. Use /v1/completions.", "messages")
    messages, tools = [_said(message) for message in request.messages], request.shown_tools
    prompt = _rendered(host, messages, tools, options)
    if tools and prompt == _rendered(host, messages, None, options):
        raise invalid("expected no tools: the chat template of this model shows it none. Leave them out.", "tools")
    return prompt


def parser_of(request: ChatRequest | CompletionRequest, prompt: str, host: Host) -> ResponseParser | None:
    """What tells text, thoughts and tool calls of an answer apart; None where there is only text.

    Raises:
        Refusal: the model's response template does not take this chat.
    """
    if not isinstance(request, ChatRequest):
        return None
    try:
        return response_parser(host.model, host.tokenizer, prompt, request.shown_tools)
    except _OF_TEMPLATES as error:
        raise _not_taken("response", error) from error


def _said(message: ChatMessage) -> dict[str, Any]:
    """A message as chat templates expect it: text as a whole, arguments of calls as what their JSON holds."""
    said: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    said |= message.model_dump(include={"name", "tool_call_id", "reasoning_content"}, exclude_none=True)
    if message.tool_calls:
        said["tool_calls"] = [call.model_dump(exclude={"index"}, exclude_none=True) for call in message.tool_calls]
        for call in said["tool_calls"]:
            call["function"]["arguments"] = _arguments(call["function"]["arguments"])
    return said | {"content": text_of(message.content)}


def text_of(content: str | list[TextPart] | None) -> str:
    return content if isinstance(content, str) else " ".join(part.text for part in content or ())


def _arguments(given: str) -> Any:
    try:
        return from_json(given or "{}", allow_inf_nan=False, cache_strings="none")
    except ValueError as error:
        raise invalid(f"expected the arguments of a tool call in JSON; got {error}.", "messages") from error


def _rendered(host: Host, messages: list[dict[str, Any]], tools: Any, options: dict[str, Any]) -> str:
    try:
        prompt = host.tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=True, **options
        )
    except _OF_TEMPLATES as error:
        raise _not_taken("chat", error) from error
    assert isinstance(prompt, str)
    return prompt


def _not_taken(which: str, error: Exception) -> Refusal:
    got = f"{type(error).__name__}: {error}"[:300]
    return invalid(f"expected messages that the model's {which} template takes; got {got}.", "messages")
