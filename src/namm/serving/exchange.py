"""From a request to its answer: what is asked is rendered and tokenised, and answered in OpenAI's format."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from namm.serving.host import Host, Limits
from namm.serving.prompts import parser_of, prompts_of
from namm.serving.refusals import Refusal, invalid, too_long, unknown_model
from namm.serving.requests import ChatRequest, CompletionRequest
from namm.serving.responses import ChatWriter, TextWriter, Writer, usage_of
from namm.serving.sampling import Sampling
from namm.serving.session import MemoryWatcher, Outbox, Session
from namm.serving.text import Text


@dataclass(eq=False)
class Exchange:
    """A request on its way to its response.

    Attributes:
        sessions: one for each answer.
        outbox: where these arrive.
    """

    request: ChatRequest | CompletionRequest
    sessions: list[Session]
    outbox: Outbox
    writer: Writer

    async def whole(self) -> str:
        """The response once all is there.

        Raises:
            Refusal: the engine could not answer.
        """
        async for _ in self._chunks():
            pass
        return _json(self.writer.whole(self.sessions))

    async def stream(self) -> AsyncIterator[str]:
        """Server-sent events; if there is no answer, the reason is the last one."""
        try:
            for chunk in self.writer.begin():
                yield event(_json(chunk))
            async for chunk in self._chunks():
                yield event(_json(chunk))
            for chunk in self.writer.cost(self.sessions):
                yield event(_json(chunk))
        except Refusal as error:
            yield event(error.json())
        yield event("[DONE]")

    async def _chunks(self) -> AsyncIterator[BaseModel]:
        async for choice, item in self.outbox.read(len(self.sessions)):
            if isinstance(item, dict):
                chunks = [self.writer.event(item)]
            elif item is None:
                chunks = self.writer.end(choice, self.sessions[choice].finish or "stop")
            else:
                chunks = self.writer.add(choice, item)
            for chunk in chunks:
                yield chunk

    def cost(self) -> dict[str, Any]:
        """What it has taken, for the log."""
        sessions, usage = self.sessions, usage_of(self.sessions)
        failed = next((one.failed.code for one in sessions if one.failed is not None), None)
        first = [one.first - one.came for one in sessions if one.first is not None]
        return {
            "id": self.writer.id,
            "model": self.request.model,
            "prompt_tokens": usage["prompt_tokens"],
            "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            "answer_tokens": usage["completion_tokens"],
            "finish": failed or sessions[0].finish,
            "first_token_s": round(min(first), 4) if first else None,
            **{name: usage["namm"][name] for name in ("kept_tokens", "bytes_held", "bytes_full")},
        }


def exchange_of(
    request: ChatRequest | CompletionRequest, owner: str, outbox: Outbox, host: Host, limits: Limits
) -> Exchange:
    """What a request asks for; as slow as it is long.

    Raises:
        Refusal: the request cannot be served.
    """
    served = host.served.get(request.model)
    if served is None:
        raise unknown_model(request.model, list(host.served))
    most = _longest_answer(request, limits)
    sampling = Sampling.of(request, host, most)
    prompts, count = prompts_of(request, host), request.answers
    writer: Writer
    parsers = [parser_of(request, prompts[0].text, host) for _ in range(len(prompts) * count)]
    if isinstance(request, ChatRequest):
        writer = ChatWriter(request, host.vocabulary, parsers)
    else:
        writer = TextWriter(request, host.vocabulary, len(parsers))
    sessions = [
        Session(
            id=writer.id,
            owner=owner,
            served=served,
            chat=isinstance(request, ChatRequest),
            prompt=prompts[number // count].text,
            prompt_ids=prompts[number // count].ids,
            sampling=sampling.branch(number % count),
            most=_that_fits(len(prompts[number // count].ids), most, request, host.context),
            text=Text(host.tokenizer, request.stops, special=parser is not None),
            outbox=outbox,
            choice=number,
            watcher=MemoryWatcher(host, served) if request.watched else None,
            echo=isinstance(request, CompletionRequest) and request.echo,
            likeliest=request.likeliest,
            branch=number % count > 0,
        )
        for number, parser in enumerate(parsers)
    ]
    for first in range(0, len(sessions), count):
        sessions[first].branches = tuple(sessions[first + 1 : first + count])
    return Exchange(request, sessions, outbox, writer)


def _longest_answer(request: ChatRequest | CompletionRequest, limits: Limits) -> int:
    asked, most = request.most, limits.answer
    if asked is not None and asked > most:
        field = "max_tokens" if request.max_tokens == asked else "max_completion_tokens"
        raise invalid(f"expected at most {most:,} tokens for an answer; got {asked:,}. Lower {field}.", field)
    return min(most, request.default_most) if asked is None else asked


def _that_fits(prompt: int, most: int, request: ChatRequest | CompletionRequest, context: int) -> int:
    """Tokens of the answer: fewer than the default where the context ends, never fewer than were asked for."""
    if not prompt:
        raise invalid("expected a prompt of at least one token; got none. Give a text.", request.prompt_field)
    if prompt + most > context and (request.most is not None or prompt >= context):
        raise too_long(prompt, most, context, request.prompt_field)
    return min(most, context - prompt)


def event(data: str) -> str:
    """One server-sent event."""
    return f"data: {data}\n\n"


def _json(told: BaseModel) -> str:
    return told.model_dump_json(exclude_unset=True)
