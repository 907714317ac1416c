"""The web application: OpenAI's routes, conversations, health, metrics, and the page."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Security
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from namm.serving.access import Access
from namm.serving.host import Limits
from namm.serving.metrics import Collected
from namm.serving.middleware import CLIENT_CLOSED, AccessMiddleware, Gone, RequestLog, unless_gone
from namm.serving.refusals import Refusal, answer_of, unknown_model
from namm.serving.requests import ChatRequest, CompletionRequest, described, read
from namm.serving.service import EVENTS, Answer, AnswerStart, Backend
from namm.version import __version__

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
    403: "A web page of another origin",
    404: "No such model or conversation",
    408: "The body did not come in time",
    413: "The body is too large",
    415: "The body is no JSON",
    421: "No name of this server",
    429: "The queue is full: try again after the seconds in Retry-After",
    500: "The answer failed",
    503: "The server is shutting down",
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": what, "content": {"application/json": {"schema": _ERROR}}}
    for status, what in _STATUSES.items()
}


def create_app(backend: Backend, limits: Limits, access: Access, page: str, replicas: int = 1) -> FastAPI:
    """The application in front of whoever answers.

    Args:
        limits: on bodies.
        access: who may ask.
        page: what `/` shows, in HTML.
        replicas: engines that answer.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with backend.running():
            yield

    app = FastAPI(
        title="namm", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.add_middleware(AccessMiddleware, access=access, body=limits.body, bodies=limits.bodies * replicas)
    app.add_middleware(RequestLog, registry=backend.registry)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(Gone, _gone)
    app.add_exception_handler(HTTPException, _http)
    app.state.models = [one["id"] for one in backend.models]
    for router in (_answers(backend), _models(backend), _conversations(backend), _watching(backend, page)):
        app.include_router(router)
    return app


def _owner(request: Request, _: Annotated[Any, Security(HTTPBearer(auto_error=False))]) -> str:
    """Whom the request is from, as the middleware found."""
    found: str = request.state.owner
    return found


_Owner = Annotated[str, Depends(_owner)]


# -- answers -----------------------------------------------------------------------------------------------------------


def _answers(backend: Backend) -> APIRouter:
    router, reader = APIRouter(responses=_REFUSALS), ThreadPoolExecutor(1, "namm-reader")  # one holds Python's lock

    async def answered(kind: type[ChatRequest] | type[CompletionRequest], http: Request, owner: str) -> Response:
        if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refusal(  # a form of another web page sends anything else
                415,
                "expected a body in JSON; got another type. Send the header 'Content-Type: application/json'.",
                "unsupported_media_type",
            )
        reading = asyncio.get_running_loop().run_in_executor(reader, read, kind, await http.body())
        request = await unless_gone(http.receive, reading)
        return await _response(backend.answer(request, owner, http.state.log), http)

    @router.post(ChatRequest.path, openapi_extra=described(ChatRequest))
    async def chat_completions(request: Request, owner: _Owner) -> Response:
        """Answer a chat; one that extends an earlier one goes on from what was remembered of it."""
        return await answered(ChatRequest, request, owner)

    @router.post(CompletionRequest.path, openapi_extra=described(CompletionRequest))
    async def completions(request: Request, owner: _Owner) -> Response:
        """Continue a text."""
        return await answered(CompletionRequest, request, owner)

    return router


async def _response(answer: Answer, http: Request) -> Response:
    """
    Raises:
        Gone: the client left.
    """
    streaming = False
    try:
        start = await unless_gone(http.receive, anext(answer))
        assert isinstance(start, AnswerStart)
        if start.media_type == EVENTS:
            streaming = True
            return _Streaming(start, answer)
        body = "".join([str(piece) async for piece in answer])
        return Response(body, start.status, start.headers, start.media_type)
    finally:
        if not streaming:  # the client is answered, refused or gone
            await answer.aclose()


class _Streaming(StreamingResponse):
    """A stream whose answer is closed however it ends."""

    def __init__(self, start: AnswerStart, answer: Answer) -> None:
        super().__init__((str(piece) async for piece in answer), start.status, start.headers, start.media_type)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._answer.aclose()


# -- all else ----------------------------------------------------------------------------------------------------------


def _models(backend: Backend) -> APIRouter:
    router = APIRouter(responses=_REFUSALS)

    @router.get("/v1/models")
    async def models(_: _Owner) -> dict[str, Any]:
        """The model, once for each memory it is served with."""
        return {"object": "list", "data": backend.models}

    @router.get("/v1/models/{model:path}")
    async def model(model: str, _: _Owner) -> dict[str, Any]:
        """One of them."""
        known = {one["id"]: one for one in backend.models}
        if model not in known:
            raise unknown_model(model, list(known))
        return known[model]

    return router


def _conversations(backend: Backend) -> APIRouter:
    router = APIRouter(responses=_REFUSALS)

    @router.get("/v1/conversations")
    async def conversations(owner: _Owner) -> dict[str, Any]:
        """This key's conversations that can go on without being read again, least recently used first."""
        return {"object": "list", "data": await backend.conversations(owner)}

    @router.delete("/v1/conversations/{ident}", status_code=204)
    async def delete(ident: str, owner: _Owner) -> Response:
        """Forget a conversation."""
        await backend.forget(owner, ident)
        return Response(status_code=204)

    return router


def _watching(backend: Backend, page: str) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> JSONResponse:
        """200 while requests are taken and steps end in time, else 503."""
        found = await backend.health()
        return JSONResponse(found, 200 if found["status"] == "ok" else 503)

    @router.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """For Prometheus; counts only, of all keys together."""
        told = generate_latest(Collected(await backend.meters()))
        return Response(told, media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        """The page: a chat, and what the model remembers of it."""
        return HTMLResponse(page)

    return router


# -- refusals ----------------------------------------------------------------------------------------------------------


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return answer_of(error)


async def _gone(_: Request, error: Exception) -> Response:
    """For the log and the counts: nobody is there to read it."""
    assert isinstance(error, Gone)
    return Response(status_code=CLIENT_CLOSED)


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return answer_of(Refusal(error.status_code, str(error.detail), "invalid_request"), error.headers)
