"""Several replicas of a server behind one port, in a cluster of Ray or on this machine alone.

    with deployed(settings, replicas=2) as app:
        uvicorn.run(app)

The application runs where the command was given: it reads requests, as that of one server does, and has replicas
answer them.
"""

from __future__ import annotations

import logging
import math
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import RequestRouterConfig

from namm.errors import ConfigurationError, RunError
from namm.serving.app import create_app
from namm.serving.replica import Replica
from namm.serving.replicas import RAISED, Replicas
from namm.serving.routing import ConversationRouter
from namm.serving.settings import Settings, page

_LOCAL = "local"  # Ray's address of a cluster of its own
_ERROR = re.compile(r"[\w.]*Error: ")  # the last line of a traceback
_QUIET = {"log_level": "ERROR", "enable_access_log": False}
_FINISH = 40.0  # seconds that a replica may take to finish and to put conversations to disk
_WATCHED = {"health_check_period_s": 2, "health_check_timeout_s": 10}  # after three in a row it is started again


@contextmanager
def deployed(settings: Settings, replicas: int, log_level: str = "warning", name: str = "namm") -> Iterator[FastAPI]:
    """The application in front of `replicas` replicas, which run until the end of the block.

    Args:
        name: of the application in Ray Serve; the one of the same name in a running cluster is replaced.

    Raises:
        ConfigurationError: more replicas than the cluster has room for, or options that are no server's.
        RunError: there is no cluster where RAY_ADDRESS says, or a replica does not start.
    """
    if replicas < 1:
        raise ConfigurationError("at least one replica", replicas, "Try --replicas 2.")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    cores = os.cpu_count() or 1
    own = not ray.is_initialized()
    address = os.environ.get("RAY_ADDRESS", _LOCAL)
    shared = not own or address != _LOCAL
    threads = settings.threads or (1 if shared else max(1, cores // replicas))
    settings = _anywhere(replace(settings, threads=threads))
    if own:
        _connect(address, max(cores, replicas * threads))
    try:
        if shared:
            _check_room(replicas, threads)
        handle = _start(settings, replicas, log_level, name)
        backend = Replicas(handle, replicas, handle.models.remote().result(timeout_s=60))
        yield create_app(backend, settings.limits, settings.access, page(), replicas)
    finally:
        with suppress(*RAISED, TimeoutError):  # one that never ran, or does not end
            serve.delete(name)
        if own:
            ray.shutdown()


def _anywhere(settings: Settings) -> Settings:
    """The same settings in a process with another working directory."""

    def absolute(given: str) -> str:
        path = Path(given).expanduser()
        return str(path.resolve()) if path.exists() else given

    return replace(
        settings, name=settings.called(), model=absolute(settings.model),
        memories=tuple(absolute(memory) for memory in settings.memories),
        spill=settings.spill and settings.spill.expanduser().resolve(),
    )  # fmt: skip


def _connect(address: str, processors: int) -> None:
    """To the cluster at this address, or to a new one on this machine with so many places for threads."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # as one server has; of Ray's 15, a busy machine leaves nothing
    options: dict[str, Any] = {"num_cpus": processors, "include_dashboard": False} if address == _LOCAL else {}
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit():
            socket.create_connection((host, int(port)), timeout=5).close()  # Ray itself waits for minutes
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise RunError("a cluster of Ray", error, "Set RAY_ADDRESS to a running one, or leave it unset.") from error


def _check_room(replicas: int, threads: int) -> None:
    there = ray.cluster_resources().get("CPU", 0)
    if replicas * threads > there:
        raise ConfigurationError(
            f"at most {there:g} threads, the processors of the cluster", f"{replicas} replicas of {threads}",
            "Lower --replicas or --threads.",
        )  # fmt: skip


def _start(settings: Settings, replicas: int, log_level: str, name: str) -> Any:
    """A handle of the replicas once all of them run."""
    serve.start(proxy_location="Disabled", logging_config=_QUIET)
    deployment = serve.deployment(
        Replica,
        name="replica",
        num_replicas=replicas,
        max_ongoing_requests=1 << 20,  # the engine has a queue
        request_router_config=RequestRouterConfig(request_router_class=ConversationRouter),
        ray_actor_options={"num_cpus": settings.threads, "num_gpus": _gpus(settings.device, replicas)},
        graceful_shutdown_timeout_s=_FINISH,
        graceful_shutdown_wait_loop_s=0.1,
        max_constructor_retry_count=1,
        logging_config=_QUIET,
        **_WATCHED,
    )
    try:
        return serve.run(deployment.bind(settings, log_level), name=name, route_prefix=None)
    except RuntimeError as error:
        raise RunError("replicas that start", _reason(name) or error, "Try without --replicas.") from error


def _reason(name: str) -> str:
    """The error that ended a replica, from the traceback that Serve keeps; empty if there is none."""
    application = serve.status().applications.get(name)
    told = [one.message for one in application.deployments.values()] if application is not None else []
    errors = [line for line in "\n".join(told).splitlines() if _ERROR.match(line)]
    return errors[-1].removeprefix("namm.errors.").rstrip(".") if errors else ""


def _gpus(device: str | None, replicas: int) -> float:
    """The share of a GPU that each replica gets."""
    there = int(ray.cluster_resources().get("GPU", 0))
    if device is not None and device.startswith("cuda:"):
        raise ConfigurationError("a device without a number", device, "Ray gives each replica its own: --device cuda.")
    if not there or (device is not None and device != "cuda"):
        return 0
    return 1 / math.ceil(replicas / there)
