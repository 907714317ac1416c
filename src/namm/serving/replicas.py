"""Several replicas of a server behind one port, each of them a deployment of Ray Serve.

    with deployed(settings, replicas=2) as front:
        uvicorn.run(front)

Serve starts the replicas, watches them, and starts those again that end. The front runs where the command was given;
it chooses by the beginning of a conversation, see `sticky`.
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
from ray import serve
from ray.serve.api import RunTarget, run_many

from namm.errors import ConfigurationError, RunError
from namm.serving.front import Front
from namm.serving.remote import BROKEN, Remote
from namm.serving.replica import Replica
from namm.serving.settings import Settings

LOCAL = "local"  # Ray's address of a cluster of its own
_ERROR = re.compile(r"[\w.]*Error: ")  # the last line of a traceback
_QUIET = {"log_level": "ERROR", "enable_access_log": False}
_FINISH = 40.0  # seconds that a replica may take to finish and to put conversations to disk
_WATCHED = {"health_check_period_s": 2, "health_check_timeout_s": 10}  # after three in a row it is started again


@contextmanager
def deployed(settings: Settings, replicas: int, log_level: str = "warning", name: str = "namm") -> Iterator[Front]:
    """The front of `replicas` replicas, which run until the end of the block.

    Args:
        name: of the applications in Ray Serve; those of the same names in a running cluster are replaced.

    Raises:
        ConfigurationError: more replicas than the cluster has room for, or options that are no server's.
        RunError: there is no cluster where RAY_ADDRESS says, or a replica does not start.
    """
    if replicas < 1:
        raise ConfigurationError("at least one replica", replicas, "Try --replicas 2.")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    cores = os.cpu_count() or 1
    own = not ray.is_initialized()
    address = os.environ.get("RAY_ADDRESS", LOCAL)
    shared = not own or address != LOCAL
    threads = settings.threads or (1 if shared else max(1, cores // replicas))
    settings = _anywhere(replace(settings, threads=threads))
    if own:
        _connect(address, max(cores, replicas * threads))
    names = [f"{name}-replica-{number}" for number in range(replicas)]
    try:
        if shared:
            _check_room(replicas, threads)
        handles = _start(settings, names, log_level)
        offer = handles[0].offer.remote().result(timeout_s=60)
        yield Front([Remote(*pair) for pair in enumerate(handles)], offer, settings.access)
    finally:
        _stop(names, own)


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
    options: dict[str, Any] = {"num_cpus": processors, "include_dashboard": False} if address == LOCAL else {}
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


def _start(settings: Settings, names: list[str], log_level: str) -> list[Any]:
    """Handles of the replicas once all of them run."""
    serve.start(proxy_location="Disabled", logging_config=_QUIET)
    deployment = serve.deployment(
        Replica, num_replicas=1, max_ongoing_requests=1 << 20,  # the engine has a queue
        ray_actor_options={"num_cpus": settings.threads, "num_gpus": _gpus(settings.device, len(names))},
        graceful_shutdown_timeout_s=_FINISH, graceful_shutdown_wait_loop_s=0.1, max_constructor_retry_count=1,
        logging_config=_QUIET, **_WATCHED,
    )  # fmt: skip
    targets = []
    for number, name in enumerate(names):
        spill = settings.spill and settings.spill / f"replica-{number}"  # nobody adopts another's
        bound = deployment.options(name=name).bind(replace(settings, spill=spill), number, log_level)
        targets.append(RunTarget(bound, name, route_prefix=None))
    try:
        return list(run_many(targets))
    except RuntimeError as error:
        raise RunError("replicas that start", _reason(names) or error, "Try without --replicas.") from error


def _reason(names: list[str]) -> str:
    """The error that ended a replica, from the traceback that Serve keeps; empty if there is none."""
    known = serve.status().applications
    told = [one.message for name in names if name in known for one in known[name].deployments.values()]
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


def _stop(names: list[str], own: bool) -> None:
    """End the replicas, and Ray as far as it was started here."""
    for name in names:
        with suppress(*BROKEN, TimeoutError):  # one that never ran, or does not end
            serve.delete(name)
    if own:
        ray.shutdown()
