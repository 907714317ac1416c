"""The web application: OpenAI's routes, conversations, health, metrics, and the page."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Depends, FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from namm.errors import NotFoundError
from namm.report.memory_page import memory_page
from namm.serving.conversations import Conversation
from namm.serving.door import CLIENT_CLOSED, Door, Gone, Keys, unless_gone
from namm.serving.engine import Engine
from namm.serving.handlers import ChatHandler, Desk, TextHandler, Ticket
from namm.serving.host import Host, describe_model
from namm.serving.metrics import Metrics
from namm.serving.refusals import Refusal, answer_of, not_removed, unknown_model
from namm.serving.requests import ChatRequest, CompletionRequest
from namm.version import __version__

log = logging.getLogger("namm.serving")
_UNREADABLE = "There was an error parsing the body"  # what FastAPI says of bytes that are no text
_ALTERNATIVE = re.compile(r"\[|^str$")  # what pydantic calls a branch of a union


_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_STATUSES = {
    400: "The request cannot be served as it is",
    401: "No known API key",
    404: "No such model or conversation",
    413: "The body is too large",
    429: "The queue is full: try again after the seconds in Retry-After",
    500: "The answer failed",
    503: "The server is shutting down",
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": what, "content": {"application/json": {"schema": _ERROR}}}
    for status, what in _STATUSES.items()
}


def create_app(
    engine: Engine,
    metrics: Metrics,
    keys: Iterable[str] = (),
    page: dict[str, Any] | None = None,
    origins: Iterable[str] = (),
) -> FastAPI:
    """The application around an engine; the engine is closed when it ends.

    Args:
        keys: API keys; without any, no key is asked for and everyone shares conversations.
        page: what the page at `/` is given, such as an example text.
        origins: of web pages from elsewhere that may ask, such as "https://chat.example".
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(
        title="namm", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.add_middleware(Door, keys=Keys(keys), limit=engine.limits.body, metrics=metrics)
    if allowed := list(origins):
        app.add_middleware(CORSMiddleware, allow_origins=allowed, allow_methods=["*"], allow_headers=["*"])
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(Gone, _gone)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _http)
    app.state.engine = engine
    app.include_router(_answers(engine))
    app.include_router(_models(engine.host))
    app.include_router(_conversations(engine))
    app.include_router(_watching(engine, metrics, page))
    return app


def _owner(request: Request, _: Annotated[Any, Security(HTTPBearer(auto_error=False))]) -> str:
    """Whom the request is from, as the door found."""
    found: str = request.state.owner
    return found


Owner = Annotated[str, Depends(_owner)]


def _answers(engine: Engine) -> APIRouter:
    router, desk = APIRouter(responses=_REFUSALS), Desk(engine)
    chat, text = ChatHandler(desk), TextHandler(desk)

    async def answer(handler: ChatHandler | TextHandler, request: Request, owner: str, asked: Any) -> Response:
        ticket = desk.open(f"{handler.prefix}-{uuid4().hex}", owner, asked)
        try:
            response: Response = await unless_gone(request.receive, handler.handle(ticket))
        except BaseException:  # a client that left among them
            desk.close(ticket.id)
            raise
        if isinstance(response, StreamingResponse):
            return _Streaming(response, lambda: _closed(desk, ticket, request))
        _closed(desk, ticket, request)
        return response

    @router.post("/v1/chat/completions")
    async def chat_completions(request: Request, owner: Owner, asked: ChatRequest) -> Response:
        """Answer a chat; one that extends an earlier one goes on from what was remembered of it."""
        return await answer(chat, request, owner, asked)

    @router.post("/v1/completions")
    async def completions(request: Request, owner: Owner, asked: CompletionRequest) -> Response:
        """Continue a text."""
        return await answer(text, request, owner, asked)

    return router


def _models(host: Host) -> APIRouter:
    router = APIRouter(responses=_REFUSALS)

    @router.get("/v1/models")
    async def models(_: Owner) -> dict[str, Any]:
        """The model, once for each memory it is served with."""
        return {"object": "list", "data": [describe_model(served, host) for served in host.served.values()]}

    @router.get("/v1/models/{model:path}")
    async def model(model: str, _: Owner) -> dict[str, Any]:
        """One of them."""
        if model not in host.served:
            raise unknown_model(model, list(host.served))
        return describe_model(host.served[model], host)

    return router


def _conversations(engine: Engine) -> APIRouter:
    router, kept = APIRouter(responses=_REFUSALS), engine.conversations

    @router.get("/v1/conversations")
    async def conversations(owner: Owner) -> dict[str, Any]:
        """This key's conversations that can go on without being read again, least recently used first."""
        found: list[Conversation] = await _ask(engine, lambda: kept.of(owner))
        return {"object": "list", "data": [one.describe() for one in found]}

    @router.delete("/v1/conversations/{ident}", status_code=204)
    async def delete(ident: str, owner: Owner) -> Response:
        """Forget a conversation."""
        if not await _ask(engine, lambda: kept.remove(kept.get(owner, ident))):
            raise not_removed(ident)
        return Response(status_code=204)

    return router


def _watching(engine: Engine, metrics: Metrics, page: dict[str, Any] | None) -> APIRouter:
    router, html = APIRouter(), memory_page(live=page or {})

    @router.get("/health")
    async def health() -> JSONResponse:
        """200 while requests are taken and steps end in time, else 503."""
        status = engine.status
        return JSONResponse({"status": status, **engine.state()}, 200 if status == "ok" else 503)

    @router.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """For Prometheus; counts only, of all keys together."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        """The page: a chat, and what the model remembers of it."""
        return HTMLResponse(html)

    return router


# -- answers and their clients -----------------------------------------------------------------------------------------


async def _ask(engine: Engine, action: Callable[[], Any]) -> Any:
    """Something done by the engine's thread, which owns the conversations."""
    try:
        return await asyncio.wrap_future(engine.call(action))
    except NotFoundError as error:
        raise Refusal(404, str(error), "not_found") from error


class _Streaming(StreamingResponse):
    """A stream that says when it is over, however it ends."""

    def __init__(self, stream: StreamingResponse, closed: Callable[[], None]) -> None:
        super().__init__(stream.body_iterator, stream.status_code, media_type=stream.media_type)
        self._closed = closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._closed()


def _closed(desk: Desk, ticket: Ticket, request: Request) -> None:
    """Note what a request cost, for the log."""
    desk.close(ticket.id)
    job = ticket.job
    if job is None:
        return
    request.state.log.update(
        id=ticket.id, model=ticket.served.id, prompt_tokens=len(job.prompt_ids), cached_tokens=job.reused,
        answer_tokens=len(job.answer_ids), finish=job.finish if job.failed is None else job.failed.code,
        kept_tokens=round(job.kept, 1), bytes_held=job.bytes_held, bytes_full=job.bytes_full,
        first_token_s=round(job.first - job.came, 4) if job.first is not None else None,
    )  # fmt: skip


# -- refusals ----------------------------------------------------------------------------------------------------------


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return answer_of(error)


async def _gone(_: Request, error: Exception) -> Response:
    """For the log and the counts: nobody is there to read it."""
    assert isinstance(error, Gone)
    return Response(status_code=CLIENT_CLOSED)


async def _malformed(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    deepest = max(error.errors(), key=lambda one: len(one["loc"]))  # of alternatives, the one that came closest
    message = str(deepest["msg"]).removeprefix("Value error, ")
    if deepest["type"] == "json_invalid":
        return answer_of(Refusal(400, f"expected a body in JSON; got {deepest['ctx']['error']}.", "invalid_json"))
    place = ".".join(str(part) for part in deepest["loc"][1:] if not _ALTERNATIVE.search(str(part)))
    return answer_of(Refusal(400, f"{place}: {message}" if place else message, "invalid_value", place or None))


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if message == _UNREADABLE:
        message = "expected a body of JSON in UTF-8; got something else."
    return answer_of(Refusal(error.status_code, message, "invalid_request"), error.headers)
