"""Answers in OpenAI's format: a whole one, or its chunks."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from openai.types import Completion, CompletionChoice
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.completion_choice import Logprobs
from pydantic import BaseModel

from namm.compat import ResponseParser
from namm.serving.messages import AnswerMessage
from namm.serving.requests import ChatRequest, CompletionRequest, GenerationRequest
from namm.serving.session import Session
from namm.serving.text import Piece, TokenLogprob
from namm.serving.vocabulary import Vocabulary
from namm.trace import Event

_UNLIKELY = -9999.0  # what OpenAI tells of a token that is out of the question


class _Writer(ABC):
    """What becomes of a request is added to it piece by piece, in whichever form it is sent in the end.

    Attributes:
        id: of the answer.
    """

    prefix: str

    def __init__(self, request: GenerationRequest, vocabulary: Vocabulary) -> None:
        self.id = f"{self.prefix}-{uuid4().hex}"
        self._model, self._created, self._with_usage = request.model, int(time.time()), request.with_usage
        self._vocabulary = vocabulary

    def event(self, event: Event) -> BaseModel:
        """The chunk of an event of the memory."""
        return self._chunk([], namm={"event": event})

    def cost(self, sessions: Sequence[Session]) -> list[BaseModel]:
        """The last chunk of a stream, if it was asked for."""
        return [self._chunk([], usage=usage_of(sessions))] if self._with_usage else []

    @abstractmethod
    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> BaseModel: ...

    def _told(self, kind: str, **more: Any) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self._created, "model": self._model, **more}


class ChatWriter(_Writer):
    """`/v1/chat/completions`.

    Args:
        parsers: one for each answer, see `AnswerMessage`.
    """

    prefix = "chatcmpl"

    def __init__(self, request: ChatRequest, vocabulary: Vocabulary, parsers: Sequence[ResponseParser | None]) -> None:
        super().__init__(request, vocabulary)
        most_calls = 1 if request.parallel_tool_calls is False else None
        self._messages = [AnswerMessage(f"{self.id}-{i}", parser, most_calls) for i, parser in enumerate(parsers)]
        self._reasons = [""] * len(parsers)
        self._scored = request.logprobs
        self._logprobs: list[list[dict[str, Any]]] = [[] for _ in parsers]

    def begin(self) -> list[BaseModel]:
        """The chunks that are sent before there is any text."""
        first = {"role": "assistant"}
        return [self._delta(i, delta) for i, one in enumerate(self._messages) for delta in [first, *one.begin()]]

    def add(self, choice: int, piece: Piece) -> list[BaseModel]:
        deltas, logprobs = self._messages[choice].add(piece.text), [self._logprob(token) for token in piece.tokens]
        self._logprobs[choice] += logprobs
        if logprobs and not deltas:  # of a tool call, or of what only ends the answer
            deltas = [{}]
        return [self._delta(choice, delta, logprobs=[] if i else logprobs) for i, delta in enumerate(deltas)]

    def end(self, choice: int, reason: str) -> list[BaseModel]:
        message = self._messages[choice]
        chunks = [self._delta(choice, delta) for delta in message.close()]
        self._reasons[choice] = "tool_calls" if message.calls else reason
        return [*chunks, self._delta(choice, {}, self._reasons[choice])]

    def whole(self, sessions: Sequence[Session]) -> BaseModel:
        told = zip(self._messages, self._reasons, self._logprobs, strict=True)
        choices = [
            {"index": i, "message": one.whole(), "finish_reason": reason, "logprobs": self._told_logprobs(logprobs)}
            for i, (one, reason, logprobs) in enumerate(told)
        ]
        return ChatCompletion.model_validate(self._told("chat.completion", choices=choices, usage=usage_of(sessions)))

    def _delta(
        self, choice: int, delta: dict[str, Any], reason: str | None = None, logprobs: Sequence[dict[str, Any]] = ()
    ) -> BaseModel:
        told = self._told_logprobs(logprobs) if logprobs else None
        return self._chunk([{"index": choice, "delta": delta, "finish_reason": reason, "logprobs": told}])

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> BaseModel:
        told = self._told("chat.completion.chunk", choices=choices, **more)
        return ChatCompletionChunk.model_validate({"usage": None} | told if self._with_usage else told)

    def _told_logprobs(self, logprobs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        return {"content": [*logprobs], "refusal": None} if self._scored else None

    def _logprob(self, scored: TokenLogprob) -> dict[str, Any]:
        assert scored.logprob is not None
        best = [self._named(token, logprob) for token, logprob in scored.best]
        return self._named(scored.token, scored.logprob) | {"top_logprobs": best}

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        written = self._vocabulary.bytes_of(token)
        return {"token": written.decode(errors="replace"), "bytes": [*written], "logprob": max(logprob, _UNLIKELY)}


class TextWriter(_Writer):
    """`/v1/completions`.

    Args:
        count: of answers.
    """

    prefix = "cmpl"

    def __init__(self, request: CompletionRequest, vocabulary: Vocabulary, count: int) -> None:
        super().__init__(request, vocabulary)
        self._scored = request.logprobs is not None
        self._texts, self._reasons = [""] * count, [""] * count
        self._logprobs = [Logprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[]) for _ in range(count)]
        self._ends = [0] * count  # where the next token begins

    def begin(self) -> list[BaseModel]:
        return []

    def add(self, choice: int, piece: Piece) -> list[BaseModel]:
        self._texts[choice] += piece.text
        return [self._choice(choice, piece.text, None, self._note(choice, piece.tokens) if piece.tokens else None)]

    def end(self, choice: int, reason: str) -> list[BaseModel]:
        self._reasons[choice] = reason
        return [self._choice(choice, "", reason, None)]

    def whole(self, sessions: Sequence[Session]) -> BaseModel:
        told = zip(self._texts, self._reasons, self._logprobs, strict=True)
        choices = [
            {"index": i, "text": text, "finish_reason": reason, "logprobs": logprobs if self._scored else None}
            for i, (text, reason, logprobs) in enumerate(told)
        ]
        return self._made(choices, usage=usage_of(sessions))

    def _choice(self, choice: int, text: str, reason: str | None, logprobs: Logprobs | None) -> BaseModel:
        return self._chunk([{"index": choice, "text": text, "finish_reason": reason, "logprobs": logprobs}])

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> BaseModel:
        return self._made(choices, **({"usage": None} | more if self._with_usage else more))

    def _made(self, choices: list[dict[str, Any]], **more: Any) -> BaseModel:
        """Not validated: these types know neither chunks nor the first token of a text, which has no probability."""
        made = [CompletionChoice.model_construct(**choice) for choice in choices]
        return Completion.model_construct(**self._told("text_completion", choices=made, **more))

    def _note(self, choice: int, tokens: Sequence[TokenLogprob]) -> Logprobs:
        """The probabilities of some tokens, which are added to those before."""
        new: dict[str, Any] = {
            "tokens": [self._name(one.token) for one in tokens],
            "token_logprobs": [one.logprob if one.logprob is None else max(one.logprob, _UNLIKELY) for one in tokens],
            "top_logprobs": [self._top(one) for one in tokens],
            "text_offset": [self._place(choice, one.token) for one in tokens],
        }
        for name, values in new.items():
            getattr(self._logprobs[choice], name).extend(values)
        return Logprobs.model_construct(**new)

    def _top(self, one: TokenLogprob) -> dict[str, float] | None:
        if one.logprob is None:
            return None
        chances = (*one.best, (one.token, one.logprob))
        return {self._name(token): max(logprob, _UNLIKELY) for token, logprob in chances}

    def _place(self, choice: int, token: int) -> int:
        """Where a token begins in the text, in characters; special tokens that are not shown take no place."""
        start, written = self._ends[choice], self._vocabulary.bytes_of(token)
        shown = not self._vocabulary.is_special(token) or self._texts[choice].startswith(written.decode(), start)
        if shown:
            self._ends[choice] += sum(byte & 0xC0 != 0x80 for byte in written)  # bytes that begin a character
        return start

    def _name(self, token: int) -> str:
        """Its text; of a part of a character its bytes, as OpenAI writes them."""
        written = self._vocabulary.bytes_of(token)
        try:
            return written.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in written)


Writer = ChatWriter | TextWriter


def usage_of(sessions: Sequence[Session]) -> dict[str, Any]:
    """Tokens read, remembered and written; what the memories came to hold."""
    prompt = sum(len(one.prompt_ids) for one in sessions if not one.branch)
    answer = sum(len(one.answer_ids) for one in sessions)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": sum(one.reused for one in sessions)},
        "namm": {
            "kept_tokens": round(sum(one.kept for one in sessions), 1),
            "bytes_held": sum(one.bytes_held for one in sessions),
            "bytes_full": sum(one.bytes_full for one in sessions),
            "conversation": sessions[0].conversation if len(sessions) == 1 else None,
        },
    }
