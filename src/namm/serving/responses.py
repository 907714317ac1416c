"""Answers in OpenAI's format: a whole one, or its chunks."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from openai.types import Completion, CompletionChoice
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel
from transformers.utils.chat_parsing import ResponseParser

from namm.report.trace import Event
from namm.serving.job import Job
from namm.serving.messages import Message
from namm.serving.requests import Request


class Writer(ABC):
    """Writes what becomes of a request: all of it is added, in whichever form it is sent in the end.

    Attributes:
        id: of the answer.
    """

    prefix: str

    def __init__(self, request: Request) -> None:
        self.id = f"{self.prefix}-{uuid4().hex}"
        self._model, self._created, self._with_usage = request.model, int(time.time()), request.with_usage

    @abstractmethod
    def begin(self) -> list[BaseModel]:
        """The chunks that are sent before there is any text."""

    @abstractmethod
    def add(self, choice: int, text: str) -> list[BaseModel]:
        """The chunks of some text of an answer."""

    @abstractmethod
    def end(self, choice: int, reason: str) -> list[BaseModel]:
        """The last chunks of an answer; `reason`: "stop" or "length"."""

    def event(self, event: Event) -> BaseModel:
        """The chunk of an event of the memory."""
        return self._chunk([], namm={"event": event})

    def cost(self, jobs: Sequence[Job]) -> list[BaseModel]:
        """The last chunk of a stream, if it was asked for."""
        return [self._chunk([], usage=usage_of(jobs))] if self._with_usage else []

    @abstractmethod
    def whole(self, jobs: Sequence[Job]) -> BaseModel:
        """The whole answer."""

    @abstractmethod
    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> BaseModel: ...

    def _told(self, kind: str, **more: Any) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self._created, "model": self._model, **more}


class ChatWriter(Writer):
    """`/v1/chat/completions`.

    Args:
        parsers: one for each answer, see `Message`.
        most_calls: of tools in an answer; None for any number.
    """

    prefix = "chatcmpl"

    def __init__(self, request: Request, parsers: Sequence[ResponseParser | None], most_calls: int | None) -> None:
        super().__init__(request)
        self._messages = [Message(f"{self.id}-{i}", parser, most_calls) for i, parser in enumerate(parsers)]
        self._reasons = [""] * len(parsers)

    def begin(self) -> list[BaseModel]:
        first = {"role": "assistant"}
        return [self._delta(i, delta) for i, one in enumerate(self._messages) for delta in [first, *one.begin()]]

    def add(self, choice: int, text: str) -> list[BaseModel]:
        return [self._delta(choice, delta) for delta in self._messages[choice].add(text)]

    def end(self, choice: int, reason: str) -> list[BaseModel]:
        message = self._messages[choice]
        chunks = [self._delta(choice, delta) for delta in message.close()]
        self._reasons[choice] = "tool_calls" if message.calls else reason
        return [*chunks, self._delta(choice, {}, self._reasons[choice])]

    def whole(self, jobs: Sequence[Job]) -> BaseModel:
        choices = [
            {"index": i, "message": message.whole(), "finish_reason": reason, "logprobs": None}
            for i, (message, reason) in enumerate(zip(self._messages, self._reasons, strict=True))
        ]
        return ChatCompletion.model_validate(self._told("chat.completion", choices=choices, usage=usage_of(jobs)))

    def _delta(self, choice: int, delta: dict[str, Any], reason: str | None = None) -> BaseModel:
        return self._chunk([{"index": choice, "delta": delta, "finish_reason": reason, "logprobs": None}])

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> BaseModel:
        told = self._told("chat.completion.chunk", choices=choices, **more)
        return ChatCompletionChunk.model_validate({"usage": None} | told if self._with_usage else told)


class TextWriter(Writer):
    """`/v1/completions`."""

    prefix = "cmpl"

    def __init__(self, request: Request, count: int) -> None:
        """`count`: of answers."""
        super().__init__(request)
        self._texts, self._reasons = [""] * count, [""] * count

    def begin(self) -> list[BaseModel]:
        return []

    def add(self, choice: int, text: str) -> list[BaseModel]:
        self._texts[choice] += text
        return [self._chunk([{"index": choice, "text": text, "finish_reason": None, "logprobs": None}])]

    def end(self, choice: int, reason: str) -> list[BaseModel]:
        self._reasons[choice] = reason
        return [self._chunk([{"index": choice, "text": "", "finish_reason": reason, "logprobs": None}])]

    def whole(self, jobs: Sequence[Job]) -> BaseModel:
        choices = [
            {"index": i, "text": text, "finish_reason": reason, "logprobs": None}
            for i, (text, reason) in enumerate(zip(self._texts, self._reasons, strict=True))
        ]
        return self._made(choices, usage=usage_of(jobs))

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> BaseModel:
        return self._made(choices, **({"usage": None} | more if self._with_usage else more))

    def _made(self, choices: list[dict[str, Any]], **more: Any) -> BaseModel:
        """Not validated: these types know neither chunks nor the first token of a text, which has no probability."""
        made = [CompletionChoice.model_construct(**choice) for choice in choices]
        return Completion.model_construct(**self._told("text_completion", choices=made, **more))


def usage_of(jobs: Sequence[Job]) -> dict[str, Any]:
    """Tokens read, remembered and written; what the memories came to hold."""
    prompt, answer = sum(len(job.prompt_ids) for job in jobs), sum(len(job.answer_ids) for job in jobs)
    return {
        "prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": sum(job.reused for job in jobs)},
        "namm": {
            "kept_tokens": round(sum(job.kept for job in jobs), 1),
            "bytes_held": sum(job.bytes_held for job in jobs), "bytes_full": sum(job.bytes_full for job in jobs),
            "conversation": jobs[0].conversation if len(jobs) == 1 else None,
        },
    }  # fmt: skip
