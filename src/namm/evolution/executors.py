"""Where candidates are measured: in this process, in worker processes, on a Ray cluster.

    with make_executor(workers, factory) as executor:
        outcomes = executor.map(function, units)   # [function(problem, unit) for unit in units]

Each worker builds its own problem by `factory()`. A unit is computed whole by one worker with `workers.threads` torch
threads, and results come in the order of the units, so that they do not depend on the number or the fate of workers.

The pool is our own since concurrent.futures and loky, when a worker is killed, give up all the others too, with the
models and texts that these hold, and do not say which unit it died of; so Ray's actors are replaced by it as well.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

import torch

from namm.errors import NammError, RunError
from namm.evolution.config import Workers
from namm.evolution.problem import Problem

T = TypeVar("T")
R = TypeVar("R")
Factory = Callable[[], Problem]

log = logging.getLogger(__name__)

_MOST_DEATHS = 3  # of workers over one unit, or in a row before they are ready
_GRACE = 5.0  # seconds that an idle worker has to end


class Executor(Protocol):
    """Computes units; close it when done, or use it in a `with`."""

    def map(self, function: Callable[[Problem, T], R], units: Iterable[T]) -> list[R]:
        """`function(problem, unit)` for each unit, in their order. Both must be importable where workers run.

        Raises:
            NammError: what the function raised, the first of the units'.
            RunError: a worker has no model, or dies of a unit again and again.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_executor(workers: Workers, factory: Factory, here: bool = False) -> Executor:
    """The executor that `workers` asks for.

    Args:
        here: measure in this process whatever `workers` says, since the factory cannot travel.
    """
    if here or (workers.ray is None and workers.count == 1):
        return InProcess(factory, workers.threads)
    if workers.ray is None:
        return Processes(workers, factory)
    from namm.evolution.ray_workers import RayWorkers

    return RayWorkers(workers, factory)


class InProcess:
    """Everything in this process, whose number of torch threads is changed meanwhile."""

    def __init__(self, factory: Factory, threads: int) -> None:
        self._factory, self._threads = factory, threads
        self._problem: Problem | None = None

    def __enter__(self) -> Self:
        self._before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        return self

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)

    def map(self, function: Callable[[Problem, T], R], units: Iterable[T]) -> list[R]:
        if self._problem is None:
            self._problem = self._factory()
        return [function(self._problem, unit) for unit in units]


# -- workers that may die ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Failure:
    """An exception of a worker, in a form that travels: not every exception can be pickled."""

    where: str
    error: NammError | None
    text: str

    @classmethod
    def of(cls, error: Exception, where: str) -> _Failure:
        known = error if isinstance(error, NammError) else None
        return cls(where, known, "".join(traceback.format_exception(error)).strip())

    def raised(self, doing: str) -> NammError:
        if self.error is not None and doing == "measuring":
            return self.error
        last = str(self.error) if self.error is not None else self.text.splitlines()[-1]
        if doing == "starting":
            way_out = "The model and the packages must be there on every machine that has workers."
            return RunError("a worker with its model", f"{self.where} without one: {last}", way_out)
        return RunError("outcomes from a worker", f"{self.where} failed:\n{self.text}", "This is a bug of the problem.")


@dataclass(frozen=True)
class Event:
    """What happened to a worker: it is "ready", has "failed" to start, is "done" with its unit, or "died"."""

    kind: Literal["ready", "failed", "done", "died"]
    value: Any = None


class Measurer:
    """What runs in a worker: it builds the problem, then answers units. Whatever fails is raised by the driver."""

    def __init__(self, factory: Factory, threads: int) -> None:
        self._factory, self._threads = factory, threads

    def start(self) -> Event:
        torch.set_num_threads(self._threads)
        try:
            self._problem = self._factory()
        except Exception as error:
            return Event("failed", _Failure.of(error, self.where()))
        return Event("ready")

    def work(self, function: Callable[..., Any], unit: Any) -> Event:
        try:
            return Event("done", function(self._problem, unit))
        except Exception as error:
            return Event("done", _Failure.of(error, self.where()))

    def where(self) -> str:
        return f"worker process {os.getpid()}"


class Worker(ABC):
    """A worker as its pool sees it."""

    unit: int | None = None  # index of what it works on
    ready = False

    @abstractmethod
    def submit(self, function: Callable[..., Any], unit: Any) -> None:
        """Start on a unit."""

    @abstractmethod
    def stop(self) -> None:
        """End it, whatever it does."""


W = TypeVar("W", bound=Worker)


class Pool(ABC, Generic[W]):
    """Hands units to workers, replaces the dead and has their units done again."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._workers: list[W] = []
        self._failed_starts = 0

    @abstractmethod
    def _start(self) -> W:
        """A new worker, which will say when it is ready."""

    @abstractmethod
    def _events(self) -> list[tuple[W, Event]]:
        """Wait until something happens."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop(self._workers)

    def _stop(self, workers: Iterable[W]) -> None:
        for worker in list(workers):
            worker.stop()
            self._workers.remove(worker)

    def map(self, function: Callable[[Problem, T], R], units: Iterable[T]) -> list[R]:
        while len(self._workers) < self._count:
            self._workers.append(self._start())
        try:
            return self._map(function, list(units))
        except BaseException:
            self._stop(w for w in self._workers if w.unit is not None or not w.ready)  # nobody waits for them now
            raise

    def _map(self, function: Callable[[Problem, T], R], todo: list[T]) -> list[R]:
        waiting = deque(range(len(todo)))
        results: dict[int, R] = {}
        deaths = [0] * len(todo)
        while len(results) < len(todo):
            for worker in self._workers:
                if worker.ready and worker.unit is None and waiting:
                    worker.unit = waiting.popleft()
                    worker.submit(function, todo[worker.unit])
            for worker, event in self._events():
                unit, worker.unit = worker.unit, None
                if event.kind == "ready":
                    worker.ready, self._failed_starts = True, 0
                elif event.kind == "failed":
                    raise event.value.raised("starting")
                elif event.kind == "died":
                    self._replace(worker, unit, deaths, event.value or "no last words")
                    if unit is not None:
                        waiting.appendleft(unit)
                elif isinstance(event.value, _Failure):
                    raise event.value.raised("measuring")
                else:
                    assert unit is not None
                    results[unit] = event.value
        return [results[i] for i in range(len(todo))]

    def _replace(self, worker: W, unit: int | None, deaths: list[int], words: str) -> None:
        """A new worker in the place of a dead one.

        Raises:
            RunError: it was the third in a row to die of the same unit, or before it was ready.
        """
        worker.stop()
        self._workers.remove(worker)
        if unit is not None:
            deaths[unit] += 1
            if deaths[unit] == _MOST_DEATHS:
                way_out = "Look for lack of memory; fewer workers, a smaller population or shorter texts need less."
                raise RunError("outcomes from a worker", f"{_MOST_DEATHS} workers that died of the same unit", way_out)
        elif not worker.ready:
            self._failed_starts += 1
            if self._failed_starts == _MOST_DEATHS:
                way_out = 'A script that evolves with worker processes starts below `if __name__ == "__main__":`.'
                got = f"{_MOST_DEATHS} that died before they were ready ({words})"
                raise RunError("workers that start", got, way_out)
        log.warning("a worker died%s: another takes its place", "" if unit is None else " at work")
        self._workers.append(self._start())


class _Process(Worker):
    """A worker process and the pipe to it."""

    def __init__(self, factory: Factory, threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit torch's locked threads
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, factory, threads), daemon=True)
        self.process.start()
        theirs.close()

    def submit(self, function: Callable[..., Any], unit: Any) -> None:
        with suppress(OSError):  # it died: the next event says so
            _send(self.pipe, (function, unit))

    def stop(self) -> None:
        self.pipe.close()
        if self.ready and self.unit is None:
            self.process.join(_GRACE)  # it ends by itself, and cleans up
        self.process.kill()
        self.process.join()


class Processes(Pool[_Process]):
    """Worker processes on this machine."""

    def __init__(self, workers: Workers, factory: Factory) -> None:
        super().__init__(workers.count)
        self._factory, self._threads = factory, workers.threads

    def _start(self) -> _Process:
        return _Process(self._factory, self._threads)

    def _events(self) -> list[tuple[_Process, Event]]:
        by_pipe = {worker.pipe: worker for worker in self._workers}
        events = []
        for pipe in wait(list(by_pipe)):
            worker = by_pipe[pipe]  # type: ignore[index]
            try:
                event = pickle.loads(worker.pipe.recv_bytes())
            except (EOFError, OSError):
                event = Event("died")
            events.append((worker, event))
        return events


def _serve(pipe: Connection, factory: Factory, threads: int) -> None:
    """A worker's life: it answers units until the pipe closes, as it does when the driver dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    measurer = Measurer(factory, threads)
    started = measurer.start()
    _send(pipe, started)
    while started.kind == "ready":
        try:
            function, unit = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        _send(pipe, measurer.work(function, unit))


def _send(pipe: Connection, value: Any) -> None:
    # plain pickle: torch teaches multiprocessing's own to pass tensors as shared files, which die with a worker
    pipe.send_bytes(pickle.dumps(value))
