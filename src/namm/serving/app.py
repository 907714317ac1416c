"""The web application: OpenAI's routes, conversations, health, metrics, and the page."""

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Body, Depends, FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from namm.errors import ArtefactError, NotFoundError
from namm.report.memory_page import memory_page
from namm.serving.conversations import Conversation
from namm.serving.engine import Engine
from namm.serving.handlers import ChatHandler, Desk, TextHandler, Ticket
from namm.serving.host import Host, describe_model
from namm.serving.metrics import Metrics
from namm.serving.refusals import Refusal, of_error, too_large, unauthorised, unknown_model
from namm.serving.requests import ChatRequest, CompletionRequest
from namm.version import __version__

log = logging.getLogger("namm.serving")
ANYONE = "anyone"
_UNREADABLE = "There was an error parsing the body"  # what FastAPI says of bytes that are no text
_CLIENT_CLOSED = 499  # nginx' status for a client that left
_UPLOAD = "/v1/conversations"
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


class Keys:
    """API keys, of which only digests are kept. Without any, everyone is one and the same owner."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._owners = {_digest(key) for key in keys}

    def owner(self, authorization: str) -> str:
        """Who sends this header.

        Raises:
            Refusal: nobody that is known.
        """
        if not self._owners:
            return ANYONE
        scheme, _, key = authorization.partition(" ")
        owner = _digest(key.strip())
        if scheme.lower() != "bearer" or owner not in self._owners:
            raise unauthorised()
        return owner


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]


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
    app.add_middleware(Door, keys=Keys(keys), limit=engine.limits.body, upload=engine.largest_file(), metrics=metrics)
    if allowed := list(origins):
        app.add_middleware(CORSMiddleware, allow_origins=allowed, allow_methods=["*"], allow_headers=["*"])
    app.add_exception_handler(Refusal, _refused)
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
Octets = Annotated[bytes, Body(media_type="application/octet-stream")]


def _answers(engine: Engine) -> APIRouter:
    router, desk = APIRouter(responses=_REFUSALS), Desk(engine)
    chat, text = ChatHandler(desk), TextHandler(desk)

    async def answer(handler: ChatHandler | TextHandler, request: Request, owner: str, asked: Any) -> Response:
        ticket = desk.open(f"{handler.prefix}-{uuid4().hex}", owner, asked)
        try:
            response: Response = await _unless_gone(request, handler.handle(ticket))
        except BaseException:
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

    @router.get(_UPLOAD)
    async def conversations(owner: Owner) -> dict[str, Any]:
        """This key's conversations that can go on without being read again, least recently used first."""
        found: list[Conversation] = await _ask(engine, lambda: kept.of(owner))
        return {"object": "list", "data": [one.describe() for one in found]}

    @router.get(_UPLOAD + "/{ident}", response_class=Response)
    async def export(ident: str, owner: Owner) -> Response:
        """A conversation as a safetensors file, to be uploaded where the same model is served."""
        data: bytes = await _ask(engine, lambda: kept.export(kept.get(owner, ident)))
        name = f'attachment; filename="{ident}.safetensors"'
        return Response(data, media_type="application/octet-stream", headers={"Content-Disposition": name})

    @router.post(_UPLOAD, status_code=201)
    async def restore(owner: Owner, data: Octets) -> dict[str, Any]:
        """Take up a conversation that was exported, here or elsewhere."""
        one: Conversation = await _ask(engine, lambda: engine.take_in(data, owner))
        return one.describe()

    @router.delete(_UPLOAD + "/{ident}", status_code=204)
    async def delete(ident: str, owner: Owner) -> Response:
        """Forget a conversation."""
        await _ask(engine, lambda: kept.remove(kept.get(owner, ident)))
        return Response(status_code=204)

    return router


def _watching(engine: Engine, metrics: Metrics, page: dict[str, Any] | None) -> APIRouter:
    router, html = APIRouter(), memory_page(live=page or {})

    @router.get("/health")
    async def health() -> JSONResponse:
        """200 while requests are taken, else 503."""
        status = "ok" if engine.alive else "unavailable"
        return JSONResponse({"status": status, **engine.state()}, 200 if engine.alive else 503)

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
        raise of_error(error, 404) from error
    except ArtefactError as error:
        raise of_error(error) from error


async def _unless_gone(request: Request, work: Any) -> Any:
    """The result of `work`, which is given up when the client leaves."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refusal(_CLIENT_CLOSED, "the client left", "client_closed_request")
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


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
        answer_tokens=len(job.answer_ids), finish=job.failed or job.finish, kept_tokens=round(job.kept, 1),
        bytes_held=job.bytes_held, bytes_full=job.bytes_full,
        first_token_s=round(job.first - job.came, 4) if job.first is not None else None,
    )  # fmt: skip


# -- refusals ----------------------------------------------------------------------------------------------------------


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _told(error)


async def _malformed(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    deepest = max(error.errors(), key=lambda one: len(one["loc"]))  # of alternatives, the one that came closest
    message = str(deepest["msg"]).removeprefix("Value error, ")
    if deepest["type"] == "json_invalid":
        return _told(Refusal(400, f"expected a body in JSON; got {deepest['ctx']['error']}.", "invalid_json"))
    place = ".".join(str(part) for part in deepest["loc"][1:] if not _ALTERNATIVE.search(str(part)))
    return _told(Refusal(400, f"{place}: {message}" if place else message, "invalid_value", place or None))


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if message == _UNREADABLE:
        message = "expected a body of JSON in UTF-8; got something else."
    return _told(Refusal(error.status_code, message, "invalid_request"), error.headers)


def _told(refusal: Refusal, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(refusal.body(), refusal.status, {**refusal.headers(), **(headers or {})})


# -- the door ----------------------------------------------------------------------------------------------------------


class Door:
    """What every request passes: a look at its key, a limit on its body, an id, the log, and a count.

    Args:
        keys: asked for by every path under `/v1/`, before anything of the body is read.
        limit: bytes of a body.
        upload: bytes of an uploaded conversation.
    """

    def __init__(self, app: ASGIApp, keys: Keys, limit: int, upload: int, metrics: Metrics) -> None:
        self._app, self._keys, self._limit, self._upload, self._metrics = app, keys, limit, upload, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._upload if scope["path"] == _UPLOAD else self._limit
        headers = dict(scope["headers"])
        ident = _id_of(headers.get(b"x-request-id"))
        noted: dict[str, Any] = {"request": ident, "method": scope["method"], "path": scope["path"]}
        scope.setdefault("state", {})["log"] = noted
        began, status = time.monotonic(), 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", ident.encode())]
            await send(message)

        try:
            if scope["path"].startswith("/v1/"):
                owner = self._keys.owner(headers.get(b"authorization", b"").decode("latin-1"))
                scope["state"]["owner"], noted["key"] = owner, owner[:8]
            body = await _body(headers, receive, limit)
            await self._app(scope, _again(body, receive), told)
        except Refusal as error:  # raised outside of the routes
            await _told(error)(scope, receive, told)
        finally:
            route = scope.get("route")
            self._metrics.requests.labels(getattr(route, "path", "other"), str(status)).inc()
            level = logging.INFO if scope["path"].startswith("/v1/") else logging.DEBUG
            log.log(level, "request", extra={**noted, "status": status, "seconds": round(time.monotonic() - began, 4)})


async def _body(headers: dict[bytes, bytes], receive: Receive, limit: int) -> bytes:
    """The whole body.

    Raises:
        Refusal: it is larger than the limit; no more of it than that is read.
    """
    given = headers.get(b"content-length", b"0")
    if given.isdigit() and int(given) > limit:
        raise too_large(limit)
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > limit:
            raise too_large(limit)
    return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives the body once, then what else comes: that the client left."""
    parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def given() -> Message:
        return parts.pop() if parts else await receive()

    return given


def _id_of(given: bytes | None) -> str:
    """The client's own id for a request, if it has a decent one; it never names anything in the server."""
    known = (given or b"").decode("latin-1")
    decent = 0 < len(known) <= 128 and known.isascii() and known.isprintable()
    return known if decent else uuid4().hex
