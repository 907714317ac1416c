"""Every task by its name: `passkey`, `ruler/vt`, `longbench/hotpotqa`, a whole suite, or a JSONL file of one's own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from namm.errors import NotFoundError, nearest
from namm.tasks import choubun, embedded, infinitebench, longbench, ruler
from namm.tasks.base import Task
from namm.tasks.jsonl import user_task

SUITES: dict[str, dict[str, Task]] = {
    "embedded": embedded.TASKS,
    "ruler": ruler.TASKS,
    "longbench": longbench.TASKS,
    "infinitebench": infinitebench.TASKS,
    "choubun": choubun.TASKS,
}
TASKS: dict[str, Task] = {name: task for suite in SUITES.values() for name, task in suite.items()}


def find_tasks(names: Iterable[str]) -> list[Task]:
    """The tasks meant by names of tasks, suites and JSONL files, each once, in the order of the names.

    Raises:
        NotFoundError: nothing has that name; the message gives the nearest that has.
    """
    found: dict[str, Task] = {}
    for name in names:
        if name in SUITES:
            found |= SUITES[name]
        elif name in TASKS:
            found[name] = TASKS[name]
        elif name.endswith(".jsonl"):
            task = user_task(Path(name))
            found[task.name] = task
        else:
            way_out = nearest(name, [*SUITES, *TASKS])
            raise NotFoundError("a task, a suite, or a file that ends in .jsonl", repr(name), way_out)
    return list(found.values())
