"""`namm serve`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Annotated

import typer

from namm.cli.serve_options import KEYS, listening, reached_by, read_bytes, read_keys
from namm.cli.shared import console, prepare, read_share
from namm.errors import ConfigurationError
from namm.packages import package

if TYPE_CHECKING:
    from fastapi import FastAPI

    from namm.serving.settings import Settings


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
        list[str] | None,
        typer.Option(help=f"Key that clients send, several times; `ps` shows it, {KEYS} (comma-separated) less so."),
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File with a key a line.")] = None,
    allow_anyone: Annotated[
        bool, typer.Option("--allow-anyone", help="Serve whoever reaches --host without a key.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Name the server is called by, beside localhost and --host: of a proxy, say; several."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Origin of web pages that may ask, such as https://chat.example; several.")
    ] = None,
    max_connections: Annotated[int, typer.Option(help="Connections open at once.")] = 512,
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
    from namm.serving.access import Access
    from namm.serving.host import Limits
    from namm.serving.settings import Settings

    if log_level not in ("debug", "info", "warning", "error"):
        raise ConfigurationError("debug, info, warning or error for --log-level", log_level, "Try --log-level info.")
    settings = Settings(
        model=model,
        memories=tuple(memory or ["builtin:universal"]),
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
        access=Access(read_keys(api_key, api_key_file), tuple(allow_origin or ()), tuple(allow_host or ())),
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        threads=threads,
    )
    if max_connections < 1:
        raise ConfigurationError("at least one connection", max_connections, "Try --max-connections 512.")
    with listening(host, port) as address:
        access = settings.access
        names = reached_by(address, host, access.keys, allow_anyone)
        settings = replace(settings, access=replace(access, hosts=(*access.hosts, *names)))
        _run(settings, address, replicas, log_level, max_connections)


def _run(settings: Settings, address: socket, replicas: int, log_level: str, max_connections: int) -> None:
    """Serve until a signal to stop; then finish what runs."""
    from namm.serving.connections import web_config
    from namm.serving.logs import log_json
    from namm.serving.server import Server

    host, port = address.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    with (
        console.status(f"loading {settings.model}") as status,
        _loaded(settings, replicas, log_level, f"namm-{port}") as app,
    ):
        status.stop()
        console.print(f"{', '.join(app.state.models)}\n{url}/v1, and a page at {url}/", highlight=False)
        log_json(log_level)
        with suppress(KeyboardInterrupt):
            Server(web_config(app, max_connections)).run(sockets=[address])


@contextmanager
def _loaded(settings: Settings, replicas: int, log_level: str, name: str) -> Iterator[FastAPI]:
    """The application, of one server or in front of replicas."""
    if replicas == 1:
        yield settings.app()
        return
    package("ray.serve", "ray-serve")
    from namm.serving.deployment import deployed

    with deployed(settings, replicas, log_level, name) as app:
        yield app
