"""A message while the model writes it: what it says, what it thinks, and which tools it calls."""

from __future__ import annotations

import json
from typing import Any

from namm.compat import ResponseParser

_Delta = dict[str, Any]  # what a piece of text adds: "content", "reasoning_content" or "tool_calls"
_UNREADABLE = (ValueError, LookupError, TypeError)  # what parsers raise at what models write
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # what response templates call them


class AnswerMessage:
    """Text in, deltas out.

    Args:
        ident: what the ids of its calls begin with.
        parser: of the model's response template; without one, all is content.
        most_calls: further ones are left out, with all that comes after.

    Attributes:
        calls: of tools, as OpenAI has them.
    """

    def __init__(self, ident: str, parser: ResponseParser | None, most_calls: int | None = None) -> None:
        self._ident, self._parser, self._most_calls = ident, parser, most_calls
        self._raw = ""  # of a call that is being written
        self._texts = {"content": "", "reasoning_content": ""}
        self.calls: list[_Delta] = []

    def begin(self) -> list[_Delta]:
        """What the prompt has begun already."""
        return [] if self._parser is None else self._read(self._parser.initial_events)

    def add(self, text: str) -> list[_Delta]:
        if self._parser is None:
            return self._say("content", text)
        try:
            events = self._parser.feed(text)
        except _UNREADABLE:  # no call after all: it is given as it was written, with all that follows
            self._parser = None
            return self._say("content", self._raw + text)
        return self._read(events)

    def close(self) -> list[_Delta]:
        """What was held back."""
        if self._parser is None:
            return []
        try:
            _, events = self._parser.finalize()
        except _UNREADABLE:  # the answer ended within a call
            return self._say("content", self._raw)
        return self._read(events)

    def whole(self) -> _Delta:
        """The message as OpenAI has it."""
        content, thoughts = self._texts["content"], self._texts["reasoning_content"]
        told: _Delta = {"role": "assistant", "content": content if content or not self.calls else None, "refusal": None}
        if thoughts:
            told["reasoning_content"] = thoughts
        if self.calls:
            told["tool_calls"] = self.calls
        return told

    def _read(self, events: list[dict[str, Any]]) -> list[_Delta]:
        deltas: list[_Delta] = []
        for event in events:
            kind, field = event["type"], event["field"]
            if kind == "region_open":
                self._raw = ""
            elif kind == "region_chunk" and event["dirty"]:
                self._raw += event["text"]
            elif kind == "region_chunk" and field in ("content", *_THOUGHTS):
                deltas += self._say("content" if field == "content" else "reasoning_content", event["text"])
            elif kind == "region_close" and field == "tool_calls":
                deltas += self._call(event["value"])
        return deltas

    def _say(self, field: str, text: str) -> list[_Delta]:
        if not text or self._enough():
            return []
        self._texts[field] += text
        return [{field: text}]

    def _call(self, value: Any) -> list[_Delta]:
        if self._enough():
            return []
        function = value.get("function") if isinstance(value, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or "arguments" not in function:
            return self._say("content", self._raw)
        name, arguments = function["name"], function["arguments"]
        told = arguments if isinstance(arguments, str) else json.dumps(arguments)
        call = {
            "id": f"{self._ident}-call-{len(self.calls)}", "type": "function",
            "function": {"name": name, "arguments": told},
        }  # fmt: skip
        self.calls.append(call)
        return [{"tool_calls": [{"index": len(self.calls) - 1, **call}]}]

    def _enough(self) -> bool:
        return self._most_calls is not None and len(self.calls) >= self._most_calls
