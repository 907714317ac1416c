"""The web application: OpenAI's routes, conversations, health, metrics, and the page."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Security
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from namm.errors import NotFoundError
from namm.report.memory_page import memory_page
from namm.serving.access import Access
from namm.serving.conversations import Conversation
from namm.serving.engine import Engine
from namm.serving.handlers import Handlers
from namm.serving.host import Host, describe_model
from namm.serving.metrics import Metrics
from namm.serving.middleware import CLIENT_CLOSED, AccessMiddleware, Gone, RequestLog
from namm.serving.refusals import Refusal, answer_of, not_removed, unknown_model
from namm.serving.requests import ChatRequest, CompletionRequest, described
from namm.serving.sticky import CHAT, TEXT
from namm.version import __version__

log = logging.getLogger("namm.serving")
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


def create_app(
    engine: Engine,
    metrics: Metrics,
    access: Access,
    page: dict[str, Any] | None = None,
) -> FastAPI:
    """The application around an engine; the engine is closed when it ends.

    Args:
        access: who may ask.
        page: what the page at `/` is given, such as an example text.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(
        title="namm", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.add_middleware(AccessMiddleware, access=access, body=engine.limits.body, bodies=engine.limits.bodies)
    app.add_middleware(RequestLog, metrics=metrics)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(Gone, _gone)
    app.add_exception_handler(HTTPException, _http)
    app.state.engine = engine
    app.include_router(_answers(engine))
    app.include_router(_models(engine.host))
    app.include_router(_conversations(engine))
    app.include_router(_watching(engine, metrics, page))
    return app


def _owner(request: Request, _: Annotated[Any, Security(HTTPBearer(auto_error=False))]) -> str:
    """Whom the request is from, as the middleware found."""
    found: str = request.state.owner
    return found


Owner = Annotated[str, Depends(_owner)]


def _answers(engine: Engine) -> APIRouter:
    router, handlers = APIRouter(responses=_REFUSALS), Handlers(engine)

    @router.post(CHAT, openapi_extra=described(ChatRequest, CHAT))
    async def chat_completions(request: Request, owner: Owner) -> Response:
        """Answer a chat; one that extends an earlier one goes on from what was remembered of it."""
        return await handlers.answer(ChatRequest, request, owner)

    @router.post(TEXT, openapi_extra=described(CompletionRequest, TEXT))
    async def completions(request: Request, owner: Owner) -> Response:
        """Continue a text."""
        return await handlers.answer(CompletionRequest, request, owner)

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


# -- conversations -----------------------------------------------------------------------------------------


async def _ask(engine: Engine, action: Callable[[], Any]) -> Any:
    """Something done by the engine's thread, which owns the conversations."""
    try:
        return await asyncio.wrap_future(engine.call(action))
    except NotFoundError as error:
        raise Refusal(404, str(error), "not_found") from error


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
