"""From a body to its answer: what is asked is read, rendered and tokenised beside the event loop, answered by the
engine, and written in OpenAI's format.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fastapi import Request as HttpRequest
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send
from transformers.utils.chat_parsing import ResponseParser

from namm.serving.answer import Answers, Streamer, Text
from namm.serving.engine import Engine
from namm.serving.job import Job
from namm.serving.middleware import unless_gone
from namm.serving.prompts import Prompt, encode, of_text, of_tokens, parser_of, render
from namm.serving.refusals import Refusal, invalid, not_json, too_long, unknown_model
from namm.serving.requests import ChatRequest, CompletionRequest, read
from namm.serving.responses import ChatWriter, TextWriter, Writer, usage_of
from namm.serving.sampling import Sampling

_READERS = 2  # bodies that are read at once; more would take the engine's processors


@dataclass(eq=False)
class Exchange:
    """A request on its way to its response.

    Attributes:
        jobs: one for each answer.
        answers: where these arrive.
    """

    request: ChatRequest | CompletionRequest
    jobs: list[Job]
    answers: Answers
    writer: Writer

    async def whole(self) -> Response:
        """The response once all is there.

        Raises:
            Refusal: the engine could not answer.
        """
        async for _ in self._chunks():
            pass
        return Response(_json(self.writer.whole(self.jobs)), media_type="application/json")

    async def stream(self) -> AsyncIterator[str]:
        """Server-sent events; if there is no answer, the reason is the last one."""
        try:
            for chunk in self.writer.begin():
                yield _event(_json(chunk))
            async for chunk in self._chunks():
                yield _event(_json(chunk))
            for chunk in self.writer.cost(self.jobs):
                yield _event(_json(chunk))
        except Refusal as error:
            yield _event(error.json())
        yield _event("[DONE]")

    async def _chunks(self) -> AsyncIterator[BaseModel]:
        async for choice, item in self.answers.read(len(self.jobs)):
            if isinstance(item, dict):
                chunks = [self.writer.event(item)]
            elif item is None:
                chunks = self.writer.end(choice, self.jobs[choice].finish or "stop")
            else:
                chunks = self.writer.add(choice, item)
            for chunk in chunks:
                yield chunk


class Handlers:
    """Answers the requests of both routes."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._host = engine, engine.host
        self._readers = ThreadPoolExecutor(_READERS, "namm-reader")

    async def answer(
        self, kind: type[ChatRequest] | type[CompletionRequest], http: HttpRequest, owner: str
    ) -> Response:
        """
        Raises:
            Gone: the client left.
            Refusal: the request cannot be served.
        """
        if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise not_json()  # a form of another web page sends anything else
        loop = asyncio.get_running_loop()
        answers = Answers(loop)
        reading = loop.run_in_executor(self._readers, self._read, kind, await http.body(), owner, answers)
        exchange = await unless_gone(http.receive, reading)
        streaming = False
        try:
            self._engine.submit([job for job in exchange.jobs if not job.branch])
            if exchange.request.stream:
                streaming = True
                return _Streaming(exchange, http)
            return await unless_gone(http.receive, exchange.whole())
        finally:
            if not streaming:  # the client is answered, refused or gone
                _close(exchange, http)

    def _read(
        self, kind: type[ChatRequest] | type[CompletionRequest], body: bytes, owner: str, answers: Answers
    ) -> Exchange:
        """What a body asks for; as slow as it is long."""
        request, host = read(kind, body), self._host
        served = host.served.get(request.model)
        if served is None:
            raise unknown_model(request.model, list(host.served))
        most = self._longest_answer(request)
        sampling = Sampling.of(request, host, most)
        prompts, count = self._prompts(request), request.answers
        writer: Writer
        parsers: list[ResponseParser | None] = [None] * (len(prompts) * count)
        if isinstance(request, ChatRequest):
            parsers = [parser_of(request, prompts[0].text, host) for _ in parsers]
            writer = ChatWriter(request, host.vocabulary, parsers)
        else:
            writer = TextWriter(request, host.vocabulary, len(parsers))
        jobs = [
            Job(
                id=writer.id,
                owner=owner,
                served=served,
                chat=isinstance(request, ChatRequest),
                prompt=prompts[number // count].text,
                prompt_ids=prompts[number // count].ids,
                sampling=sampling.branch(number % count),
                most=self._that_fits(len(prompts[number // count].ids), most, request),
                text=Text(host.tokenizer, request.stops, special=parser is not None),
                streamer=Streamer(answers, number),
                watch=request.watched,
                echo=isinstance(request, CompletionRequest) and request.echo,
                likeliest=request.likeliest,
                branch=number % count > 0,
            )
            for number, parser in enumerate(parsers)
        ]
        for first in range(0, len(jobs), count):
            jobs[first].branches = tuple(jobs[first + 1 : first + count])
        return Exchange(request, jobs, answers, writer)

    def _prompts(self, request: ChatRequest | CompletionRequest) -> list[Prompt]:
        if isinstance(request, ChatRequest):
            text = render(request, self._host)
            return [Prompt(text, encode(text, self._host, "messages", special=False))]
        return [
            of_text(one, self._host) if isinstance(one, str) else of_tokens(one, self._host) for one in request.prompts
        ]

    def _longest_answer(self, request: ChatRequest | CompletionRequest) -> int:
        asked, most = request.most, self._engine.limits.answer
        if asked is not None and asked > most:
            field = "max_tokens" if request.max_tokens == asked else "max_completion_tokens"
            raise invalid(f"expected at most {most:,} tokens for an answer; got {asked:,}. Lower {field}.", field)
        return min(most, request.default_most) if asked is None else asked

    def _that_fits(self, prompt: int, most: int, request: ChatRequest | CompletionRequest) -> int:
        """Tokens of the answer: fewer than the default where the context ends, never fewer than were asked for."""
        context, param = self._host.context, "messages" if isinstance(request, ChatRequest) else "prompt"
        if not prompt:
            raise invalid("expected a prompt of at least one token; got none. Give a text.", param)
        if prompt + most > context and (request.most is not None or prompt >= context):
            raise too_long(prompt, most, context, param)
        return min(most, context - prompt)


class _Streaming(StreamingResponse):
    """A stream that is closed however it ends."""

    def __init__(self, exchange: Exchange, http: HttpRequest) -> None:
        super().__init__(exchange.stream(), media_type="text/event-stream")
        self._exchange, self._http = exchange, http

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            _close(self._exchange, self._http)


def _close(exchange: Exchange, http: HttpRequest) -> None:
    """The client has its answer, or is gone: what still runs for it stops. What it cost is noted for the log."""
    exchange.answers.cancelled = True
    jobs, usage = exchange.jobs, usage_of(exchange.jobs)
    failed = next((job.failed.code for job in jobs if job.failed is not None), None)
    first = [job.first - job.came for job in jobs if job.first is not None]
    http.state.log.update(
        id=exchange.writer.id, model=exchange.request.model, prompt_tokens=usage["prompt_tokens"],
        cached_tokens=usage["prompt_tokens_details"]["cached_tokens"], answer_tokens=usage["completion_tokens"],
        finish=failed or jobs[0].finish, first_token_s=round(min(first), 4) if first else None,
        **{name: usage["namm"][name] for name in ("kept_tokens", "bytes_held", "bytes_full")},
    )  # fmt: skip


def _json(told: BaseModel) -> str:
    return told.model_dump_json(exclude_unset=True)


def _event(data: str) -> str:
    return f"data: {data}\n\n"
