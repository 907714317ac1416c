"""Workers on a Ray cluster."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import namm
from namm.errors import RunError
from namm.evolution.config import Workers
from namm.evolution.executors import Event, Factory, Measurer, Pool, Worker
from namm.packages import package

log = logging.getLogger(__name__)

_PATIENCE = 60.0  # seconds without any news before the log says what is being waited for
_DRIVER_PORT, _CLIENT_PORT = 6379, 10001


class _Actor(Worker):
    """A Ray actor and the one call it is busy with."""

    def __init__(self, ray: ModuleType, handle: Any) -> None:
        self.ray, self.handle = ray, handle
        self.call = handle.start.remote()

    def submit(self, function: Callable[..., Any], unit: Any) -> None:
        self.call = self.handle.work.remote(function, unit)

    def stop(self) -> None:
        self.ray.kill(self.handle)


class RayWorkers(Pool[_Actor]):
    """Actors on the cluster at `workers.ray`, which get this machine's code of `namm`.

    Raises:
        RunError: nothing answers at the address within `workers.timeout` seconds.
        NotFoundError: the package ray is missing.
    """

    def __init__(self, workers: Workers, factory: Factory) -> None:
        super().__init__(workers.count)
        self._ray = package("ray", "ray")
        self._workers_config, self._factory = workers, factory
        self._connected = False

    def __enter__(self) -> RayWorkers:
        if not self._ray.is_initialized():
            _connect(self._ray, self._workers_config)
            self._connected = True
        options = {"num_cpus": self._workers_config.cpus_per_worker, "num_gpus": self._workers_config.gpus_per_worker}
        self._check_resources(options)
        self._kind = self._ray.remote(**options)(_Measurer)
        self._code = self._ray.put(self._factory)
        return self

    def __exit__(self, *details: object) -> None:
        super().__exit__(*details)
        if self._connected:
            self._ray.shutdown()

    def _start(self) -> _Actor:
        return _Actor(self._ray, self._kind.remote(self._code, self._workers_config.threads))

    def _events(self) -> list[tuple[_Actor, Event]]:
        busy = {w.call: w for w in self._workers if w.call is not None}
        done: list[Any] = []
        while not done:
            done, _ = self._ray.wait(list(busy), num_returns=1, timeout=_PATIENCE)
            if not done and not any(w.ready for w in self._workers):
                log.warning("waiting for Ray to start workers; free: %s", self._ray.available_resources())
        events = []
        for call in done:
            worker = busy[call]
            worker.call = None
            try:
                event = self._ray.get(call)
            except self._ray.exceptions.RayActorError as error:
                event = Event("died", " ".join(str(error).split())[-300:])
            events.append((worker, event))
        return events

    def _check_resources(self, options: dict[str, float]) -> None:
        offered = self._ray.cluster_resources()
        for name, wanted in (("CPU", options["num_cpus"]), ("GPU", options["num_gpus"])):
            if wanted * self._count > offered.get(name, 0):
                log.warning(
                    "the Ray cluster offers %g %s, %d workers want %g each: those without wait for it to grow",
                    offered.get(name, 0),
                    name,
                    self._count,
                    wanted,
                )


class _Measurer(Measurer):
    """On the cluster."""

    def where(self) -> str:
        return f"Ray worker {os.getpid()} on {socket.gethostname()}"


def _connect(ray: ModuleType, workers: Workers) -> None:
    address = workers.ray
    assert address is not None
    try:
        if address not in ("auto", "local"):
            _check_address(address, workers.timeout)
        code = {"py_modules": [str(Path(namm.__file__).parent)]}
        ray.init(
            address=address,
            runtime_env=None if address == "local" else code,
            log_to_driver=False,
            logging_level=logging.WARNING,
            include_dashboard=False if address == "local" else None,
        )
    except (OSError, RuntimeError, ValueError) as error:  # a ConnectionError is an OSError
        reason = " ".join(str(error).split())[:300]
        way_out = (
            "Start one with `ray start --head`, check the address, or run without --ray. Where the cluster asks for a "
            "token, set this side up as Ray's page on token authentication says."
        )
        raise RunError(f"a Ray cluster at {address!r}", reason, way_out) from error


def _check_address(address: str, timeout: float) -> None:
    """Find out in time whether anything answers, and whether it is Ray, which itself tries for minutes.

    Raises:
        OSError, ValueError: it does not.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    port = parts.port or (_CLIENT_PORT if parts.scheme == "ray" else _DRIVER_PORT)
    socket.create_connection((parts.hostname or address, port), timeout=timeout).close()
    if parts.scheme == "ray":
        return  # Ray's client has a time limit of its own
    check = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", f"{parts.hostname}:{port}"]
    try:
        done = subprocess.run(check, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"something else answers there: no word of Ray within {timeout:g} s") from error
    if done.returncode:
        raise OSError((done.stderr.strip() or "unhealthy").splitlines()[-1])
