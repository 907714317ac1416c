"""Every task by its name: `passkey`, `ruler/vt`, `longbench/hotpotqa`, a whole suite, or a JSONL file of one's own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from namm.errors import ConfigurationError, NotFoundError, nearest
from namm.tasks.base import Task
from namm.tasks.choubun import PUBLISHED as CHOUBUN_DATA
from namm.tasks.choubun import TASKS as CHOUBUN
from namm.tasks.embedded import TASKS as EMBEDDED
from namm.tasks.hub import origin
from namm.tasks.infinitebench import PUBLISHED as INFINITEBENCH_DATA
from namm.tasks.infinitebench import TASKS as INFINITEBENCH
from namm.tasks.jsonl import user_task
from namm.tasks.kvpress import PUBLISHED as KVPRESS_DATA
from namm.tasks.kvpress import SUITES as KVPRESS
from namm.tasks.longbench import PUBLISHED as LONGBENCH_DATA
from namm.tasks.longbench import TASKS as LONGBENCH
from namm.tasks.repository import TASKS as REPOSITORY
from namm.tasks.ruler import TASKS as RULER

SUITES: dict[str, dict[str, Task]] = {
    "embedded": EMBEDDED,
    "repository": REPOSITORY,
    "ruler": RULER,
    **KVPRESS,
    "longbench": LONGBENCH,
    "infinitebench": INFINITEBENCH,
    "choubun": CHOUBUN,
}
_PUBLISHED = {
    "longbench": LONGBENCH_DATA,
    "infinitebench": INFINITEBENCH_DATA,
    "choubun": CHOUBUN_DATA,
    **dict.fromkeys(KVPRESS, KVPRESS_DATA),
}
TASKS: dict[str, Task] = {name: task for suite in SUITES.values() for name, task in suite.items()}


def sources(tasks: Iterable[Task], data: Path | None) -> dict[str, str]:
    """For each published suite among `tasks` where its files come from: a folder, or repository and revision."""
    suites = {task.name.partition("/")[0] for task in tasks}
    found = {suite: origin(published, data) for suite, published in _PUBLISHED.items() if suite in suites}
    if data and "ruler" in suites:  # its essays and its questions
        found["ruler"] = f"folder {data}"
    return found


def find_tasks(names: Iterable[str], folder: Path | str | None = None) -> list[Task]:
    """The tasks meant by names of tasks, suites and JSONL files, each once, in the order of the names.

    Args:
        folder: where the files are; the working folder if left out.

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
            task = user_task(Path(folder or "").expanduser() / Path(name).expanduser())
            if found.get(task.name, task).description != task.description:  # which is the path
                way_out = "Rename one, since rows know a task by its name."
                raise ConfigurationError("files with a name each", f"two tasks called {task.name!r}", way_out)
            found[task.name] = task
        else:
            way_out = nearest(name, [*SUITES, *TASKS])
            raise NotFoundError("a task, a suite, or a file that ends in .jsonl", repr(name), way_out)
    return list(found.values())
