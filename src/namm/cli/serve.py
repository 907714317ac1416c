"""`namm serve`."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from namm.cli.shared import console, prepare, read_share
from namm.errors import ConfigurationError
from namm.packages import package

if TYPE_CHECKING:
    from namm.serving.settings import Settings

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
KEYS = "NAMM_API_KEYS"


def serve(
    model: Annotated[str, typer.Argument(help="Model: folder, hub id, .gguf file.")] = "smollm2-135m-instruct",
    memory: Annotated[
        list[str] | None,
        typer.Option(help="Memory to serve with, several times; each but the first as MODEL+MEMORY."),
    ] = None,
    budget: Annotated[
        str, typer.Option(help='Share of the tokens memories may keep, or "own": a NAMM\'s own threshold.')
    ] = "0.25",
    update_interval: Annotated[
        int | None, typer.Option(help="Tokens between two updates; what a memory was evolved with, or 512.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What requests call the model; its last name if left out.")] = None,
    memory_limit: Annotated[str, typer.Option(help="Bytes of all conversations together.")] = "2GiB",
    spill: Annotated[Path | None, typer.Option(help="Folder for conversations that memory has no room for.")] = None,
    spill_limit: Annotated[str, typer.Option(help="Bytes of that folder.")] = "16GiB",
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 4096,
    context: Annotated[int | None, typer.Option(help="Most tokens of a conversation; the model's own.")] = None,
    parallel: Annotated[int, typer.Option(help="Requests that are read and answered at once.")] = 16,
    queue: Annotated[int, typer.Option(help="Requests of a key that may wait; others are told to come again.")] = 64,
    queue_all: Annotated[int, typer.Option(help="Requests of all keys that may wait.")] = 256,
    chunk: Annotated[int, typer.Option(help="Tokens of a prompt that are read before others get a turn.")] = 256,
    step_timeout: Annotated[
        int, typer.Option(help="Seconds that a chunk or a token may take until /health says 503.")
    ] = 15,
    max_body: Annotated[str, typer.Option(help="Bytes of a request.")] = "4MiB",
    api_key: Annotated[
        list[str] | None, typer.Option(help=f"Key that clients send, several times; also {KEYS}, comma-separated.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Origin of web pages that may ask, such as https://chat.example; several.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 8000,
    replicas: Annotated[int, typer.Option(help="Copies of the model, run by Ray Serve if more than one.")] = 1,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to run the model; a GPU if there is one.")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with the model.")] = False,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    threads: Annotated[int, typer.Option(help="Torch threads; 0 for torch's own choice.")] = 0,
) -> None:
    """Serve a model whose conversations keep a learned memory, in OpenAI's format; a page at / shows it."""
    for needed in ("fastapi", "uvicorn", "openai", "prometheus_client"):
        package(needed, "serve")
    prepare(threads)
    from namm.serving.host import Limits
    from namm.serving.settings import Settings

    if log_level not in ("debug", "info", "warning", "error"):
        raise ConfigurationError("debug, info, warning or error for --log-level", log_level, "Try --log-level info.")
    settings = Settings(
        model=model,
        memories=tuple(memory or ["builtin:smollm2-135m-instruct"]),
        budget=read_share(budget),
        update_interval=update_interval,
        name=name,
        limits=Limits(
            memory=read_bytes(memory_limit, "--memory-limit"),
            spilled=read_bytes(spill_limit, "--spill-limit"),
            body=read_bytes(max_body, "--max-body"),
            answer=max_tokens,
            context=context,
            parallel=parallel,
            waiting=queue,
            waiting_all=queue_all,
            chunk=chunk,
            step_timeout=step_timeout,
        ),
        spill=spill,
        keys=tuple(read_keys(api_key)),
        origins=tuple(allow_origin or ()),
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        threads=threads,
    )
    _run(settings, host, port, replicas, log_level)


def _run(settings: Settings, host: str, port: int, replicas: int, log_level: str) -> None:
    """Serve until a signal to stop; then finish what runs."""
    import uvicorn

    from namm.serving.logs import log_json
    from namm.serving.server import Server

    with (
        listening(host, port) as address,
        console.status(f"loading {settings.model}") as status,
        _loaded(settings, replicas, log_level, f"namm-{port}") as (app, names),
    ):
        status.stop()
        console.print(
            f"{', '.join(names)}\nhttp://{host}:{port}/v1, and a page at http://{host}:{port}/", highlight=False
        )
        log_json(log_level)
        config = uvicorn.Config(
            app, log_config=None, access_log=False, timeout_graceful_shutdown=30, server_header=False
        )
        with suppress(KeyboardInterrupt):
            Server(config).run(sockets=[address])


@contextmanager
def _loaded(settings: Settings, replicas: int, log_level: str, name: str) -> Iterator[tuple[Any, Iterable[str]]]:
    """The application, of one server or in front of replicas, and what its models are called."""
    if replicas == 1:
        app = settings.app()
        yield app, app.state.engine.host.served
        return
    package("ray.serve", "ray-serve")
    from namm.serving.replicas import deployed

    with deployed(settings, replicas, log_level, name) as front:
        yield front, front.offer.models


def listening(host: str, port: int) -> socket.socket:
    """A socket with this address, before anything is loaded.

    Raises:
        ConfigurationError: there is no such address, or somebody listens there.
    """
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        raise ConfigurationError("a free address to listen at", f"{host}:{port}: {error}", "Try --port.") from error
    return found


def read_bytes(said: str, option: str) -> int:
    """`2GiB` -> 2147483648; without a unit, bytes."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", said, re.IGNORECASE)
    if not found or found[2].upper() not in _UNITS:
        raise ConfigurationError(f"a number of bytes for {option}", repr(said), "Try 2GiB, 500MB or 1000000.")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def read_keys(given: list[str] | None) -> list[str]:
    """Keys of the command line and of the environment."""
    keys = [*(given or []), *os.environ.get(KEYS, "").split(",")]
    return [key.strip() for key in keys if key.strip()]
