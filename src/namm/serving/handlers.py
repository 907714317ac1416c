"""transformers' serving handlers, answered by the engine.

The handlers make the prompt, stream, parse tool calls and thoughts, and speak OpenAI's format. What they call a
generate manager is ours: it hands a request to the engine, where its conversation goes on.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse, StreamingResponse
from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.utils import BaseGenerateManager, BaseHandler, GenerationState, Modality

from namm.serving.answer import Failure, MemoryEvent, Streamer, Text
from namm.serving.engine import Engine, Job
from namm.serving.host import Host, Served
from namm.serving.refusals import invalid, too_long, unknown_model
from namm.serving.requests import ChatRequest, CompletionRequest

DEFAULT_ANSWER = 1024  # tokens, of a chat that names no limit
_DRAWN = ("temperature", "top_p", "top_k", "min_p")  # any of these asks for an answer that is drawn


@dataclass(eq=False)
class Ticket:
    """A request between the handlers and the engine."""

    id: str
    owner: str
    request: ChatRequest | CompletionRequest
    served: Served
    prompt: str = ""
    job: Job | None = None

    @property
    def chat(self) -> bool:
        return isinstance(self.request, ChatRequest)


class Desk:
    """The requests that are being handled, by their id."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.host = engine, engine.host
        self.tickets: dict[str, Ticket] = {}

    def open(self, ident: str, owner: str, request: ChatRequest | CompletionRequest) -> Ticket:
        """
        Raises:
            Refusal: there is no such model.
        """
        served = self.host.served.get(request.model)
        if served is None:
            raise unknown_model(request.model, list(self.host.served))
        ticket = self.tickets[ident] = Ticket(ident, owner, request, served)
        return ticket

    def close(self, ident: str) -> None:
        """The client has its answer, or is gone: what still runs for it stops."""
        ticket = self.tickets.pop(ident, None)
        if ticket is not None and ticket.job is not None:
            ticket.job.streamer.cancel()


class EngineManager(BaseGenerateManager):
    """What transformers calls a generate manager."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def generate_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: GenerationConfig, request_id: str,
        response_parser: Any = None,
    ) -> tuple[asyncio.Queue[Any], Streamer]:  # fmt: skip
        """The queue that the answer will come through, and its streamer."""
        job = self._submit(inputs, gen_config, request_id, response_parser)
        return job.streamer.queue, job.streamer

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: GenerationConfig, request_id: str
    ) -> tuple[str, int, list[int]]:
        """The whole answer: its text, tokens of the prompt, tokens of the answer."""
        job = self._submit(inputs, gen_config, request_id, None)
        while await job.streamer.queue.get() is not None:
            pass
        if job.failed is not None:
            raise job.failed
        return job.text.shown, len(job.prompt_ids), job.answer_ids

    def stop(self) -> None:
        """The engine is closed by whoever made it."""

    def _submit(self, inputs: Any, config: GenerationConfig, ident: str, parser: Any) -> Job:
        ticket, host = self._desk.tickets[ident], self._desk.host
        request, ids = ticket.request, inputs["input_ids"][0].tolist()
        most = config.max_new_tokens
        assert most is not None
        if len(ids) + most > host.context:
            if request.most is not None or len(ids) >= host.context:
                raise too_long(len(ids), most, host.context, "messages" if ticket.chat else "prompt")
            most = config.max_new_tokens = host.context - len(ids)
        ticket.job = Job(
            id=ident,
            owner=ticket.owner,
            served=ticket.served,
            chat=ticket.chat,
            prompt=ticket.prompt,
            prompt_ids=ids,
            config=config,
            most=most,
            text=Text(host.tokenizer, request.stops, special=parser is not None),
            streamer=Streamer(asyncio.get_running_loop(), parser),
            seed=request.seed,
            presence=request.presence_penalty or 0.0,
            frequency=request.frequency_penalty or 0.0,
            watch=request.watched and request.stream,
        )
        self._desk.engine.submit(ticket.job)
        return ticket.job


class EngineState(GenerationState):
    """Gives every handler the engine's manager."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._manager = EngineManager(desk)

    def use_continuous_batching(self, model: Any, modality: Any) -> bool:
        return False

    def get_manager(self, model_id: str, use_cb: bool = False) -> BaseGenerateManager:
        return self._manager


class _OneModel:
    """Stands where handlers look for a manager of models: there is one, and it reads text."""

    force_model = None

    @staticmethod
    def get_model_modality(*_: Any, **__: Any) -> Modality:
        return Modality.LLM


class _Handler(BaseHandler, ABC):
    """What both handlers do in another way than transformers."""

    prefix: str  # of the ids of answers

    def __init__(self, desk: Desk) -> None:
        super().__init__(_OneModel(), EngineState(desk))  # type: ignore[arg-type]
        self.desk = desk

    def _validate_request(self, body: dict[str, Any]) -> None:
        """Done already, see `requests`."""

    def _resolve_model(self, body: dict[str, Any]) -> tuple[str, Any, PreTrainedTokenizerBase]:
        host = self.desk.host
        return body["model"], host.model, host.tokenizer

    async def handle(self, ticket: Ticket) -> JSONResponse | StreamingResponse:
        """Answer a request.

        Raises:
            Refusal: it cannot be served.
        """
        host, request = self.desk.host, ticket.request
        config = generation_config(request, host, host.model.generation_config, self.desk.engine.limits.answer)
        body = {"model": request.model, "stream": request.stream, "generation": config} | self._prompted(ticket)
        response: JSONResponse | StreamingResponse = await self.handle_request(body, ticket.id)  # type: ignore[attr-defined]
        if isinstance(response, StreamingResponse):
            return StreamingResponse(_with_done(response.body_iterator), media_type="text/event-stream")
        return JSONResponse(self._completed(ticket.id, bytes(response.body)))

    @abstractmethod
    def _prompted(self, ticket: Ticket) -> dict[str, Any]:
        """What the handler of transformers makes the prompt from; notes the prompt on the ticket."""

    def _build_generation_config(
        self, body: dict[str, Any], model_generation_config: GenerationConfig, use_cb: bool = False
    ) -> GenerationConfig:
        return body["generation"]

    # -- what clients are told -----------------------------------------------------------------------------------------

    def _completed(self, ident: str, told: bytes | str) -> dict[str, Any]:
        """The end of an answer as the handler of transformers tells it, with what only the engine knows."""
        answer, job = json.loads(told), self.desk.tickets[ident].job
        assert job is not None
        answer["usage"] = _usage(job)
        choice = answer["choices"][0]
        if choice["finish_reason"] != "tool_calls" and job.finish in ("stop", "length"):
            choice["finish_reason"] = job.finish
        return answer

    def _last(self, ident: str, line: str) -> str:
        """The last chunk of a stream; none after a failure, which was told."""
        job = self.desk.tickets[ident].job
        assert job is not None
        if job.failed is not None:
            return ""
        return f"data: {json.dumps(self._completed(ident, line.removeprefix('data: ')))}\n\n"


def _usage(job: Job) -> dict[str, Any]:
    """Tokens read, remembered and written; what the memory came to hold."""
    prompt, answer = len(job.prompt_ids), len(job.answer_ids)
    return {
        "prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": job.reused},
        "namm": {
            "kept_tokens": round(job.kept, 1), "bytes_held": job.bytes_held, "bytes_full": job.bytes_full,
            "conversation": job.conversation,
        },
    }  # fmt: skip


class ChatHandler(_Handler, ChatCompletionHandler):
    """`/v1/chat/completions`."""

    prefix = "chatcmpl"

    def _prompted(self, ticket: Ticket) -> dict[str, Any]:
        request = ticket.request
        assert isinstance(request, ChatRequest)
        messages = [message.model_dump(exclude_none=True) for message in request.messages]
        for message in messages:
            message["role"] = "system" if message["role"] == "developer" else message["role"]
        options = request.chat_template_kwargs or {}
        tokenizer = self.desk.host.tokenizer
        if reserved := set(options) & set(inspect.signature(tokenizer.apply_chat_template).parameters):
            raise invalid(
                f"expected names that only the model's chat template knows; got {min(reserved)!r}. Leave it out.",
                "chat_template_kwargs",
            )
        ticket.prompt = self._render(messages, request.tools, options)
        if request.tools and ticket.prompt == self._render(messages, None, options):
            raise invalid("expected no tools: the chat template of this model shows it none. Leave them out.", "tools")
        return {"messages": messages, "tools": request.tools, "chat_template_kwargs": options}

    def _render(self, messages: list[dict[str, Any]], tools: Any, options: dict[str, Any]) -> str:
        """The prompt as text.

        Raises:
            Refusal: the template refuses these messages.
        """
        tokenizer = self.desk.host.tokenizer
        if tokenizer.chat_template is None:
            raise invalid("expected a model with a chat template; this one has none. Use /v1/completions.", "messages")
        try:
            parsed = self.get_processor_inputs_from_messages(messages, Modality.LLM)
            return tokenizer.apply_chat_template(
                parsed, tools=tools, tokenize=False, add_generation_prompt=True, **options
            )  # type: ignore[return-value]
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            reason = f"expected messages that the model's chat template takes; got {type(error).__name__}: {error}."
            raise invalid(reason, "messages") from error

    def _build_chunk_sse(self, request_id: str = "", content: str | None = None, **more: Any) -> str:
        if isinstance(content, (MemoryEvent, Failure)):
            return beside(content, request_id, "chat.completion.chunk", self.desk.tickets[request_id].served.id)
        line = ChatCompletionHandler._build_chunk_sse(self, request_id, content=content, **more)
        return line if more.get("finish_reason") is None else self._last(request_id, line)


class TextHandler(_Handler, CompletionHandler):
    """`/v1/completions`."""

    prefix = "cmpl"

    def _prompted(self, ticket: Ticket) -> dict[str, Any]:
        assert isinstance(ticket.request, CompletionRequest)
        ticket.prompt = ticket.request.text
        if not self.desk.host.tokenizer(ticket.prompt)["input_ids"]:
            raise invalid("expected a prompt of at least one token; got none. Give a text.", "prompt")
        return {"prompt": ticket.prompt}

    def _build_chunk_sse(self, request_id: str, model_id: str, text: str = "", **more: Any) -> str:  # type: ignore[override]
        if isinstance(text, (MemoryEvent, Failure)):
            return beside(text, request_id, "text_completion", model_id)
        line = CompletionHandler._build_chunk_sse(self, request_id, model_id, text=text, **more)
        return line if more.get("finish_reason") is None else self._last(request_id, line)


def beside(item: MemoryEvent | Failure, ident: str, kind: str, model: str) -> str:
    """A chunk of a stream that is no text: an event of the memory, or the reason why there will be no more."""
    told: dict[str, Any]
    if isinstance(item, Failure):
        told = item.refusal.body()
    else:
        told = {"id": ident, "object": kind, "created": int(time.time()), "model": model, "choices": []}
        told["namm"] = {"event": item.event}
    return f"data: {json.dumps(told)}\n\n"


async def _with_done(lines: AsyncIterable[Any]) -> AsyncIterator[Any]:
    async for line in lines:
        if line:
            yield line
    yield "data: [DONE]\n\n"


def generation_config(
    request: ChatRequest | CompletionRequest, host: Host, own: GenerationConfig, most: int
) -> GenerationConfig:
    """How an answer is chosen: drawn if the request asks for a temperature above 0, else as the model's default says.

    Raises:
        Refusal: more tokens than an answer may have, or a bias for a token that does not exist.
    """
    config = GenerationConfig(**own.to_dict())
    asked = request.most
    if asked is not None and asked > most:
        field_ = "max_tokens" if request.max_tokens is not None else "max_completion_tokens"
        raise invalid(f"expected at most {most:,} tokens for an answer; got {asked:,}. Lower {field_}.", field_)
    config.max_new_tokens = min(most, asked if asked is not None else DEFAULT_ANSWER)
    config.max_length = None
    for name in (*_DRAWN, "repetition_penalty"):
        if (value := getattr(request, name)) is not None:
            setattr(config, name, value)
    if request.temperature == 0:
        config.do_sample, config.temperature = False, None
    elif any(getattr(request, name) is not None for name in _DRAWN):
        config.do_sample = True
    if request.logit_bias:
        known = host.model.get_input_embeddings().num_embeddings
        bias = {int(token): value for token, value in request.logit_bias.items()}
        if strange := [token for token in bias if token >= known]:
            raise invalid(f"expected token ids below {known:,}; got {strange[0]:,}.", "logit_bias")
        config.sequence_bias = {(token,): float(value) for token, value in bias.items()}
    return config
