"""The folder of an evaluation, and who measures there.

Several processes may share it as parts of one division and one grid: then no two of them measure the same. A part holds
`run.K-of-N.lock`; the folder's own lock is held only while one looks who is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from namm.errors import ConfigurationError
from namm.evaluation.config import GRID
from namm.evaluation.identity import Identity, joined
from namm.evaluation.reader import TextGroup
from namm.evaluation.rows import RowFile
from namm.files import is_locked, locked, sweep
from namm.json_files import read_json, write_json

_DIVISION = "run.parts.json"  # how those divide the work who are at it
_PATIENCE = 60.0  # seconds; who starts holds the folder's own lock for an instant


def check_folder(out: Path) -> None:
    """Raise if the folder holds something else than an evaluation."""
    if out.exists() and not out.is_dir():
        raise ConfigurationError("a folder for the evaluation", f"{out}, which is a file", "Choose another.")
    if out.exists():
        others = [file.name for file in out.iterdir() if not file.name.lstrip(".").startswith("run.")]
        if others and not (out / "run.json").exists():  # looked for last: another part may be writing it now
            raise ConfigurationError(
                "an empty or new folder, or one with an evaluation",
                f"{out}, which holds {others[0]}",
                "Choose another.",
            )


@contextmanager
def open_folder(
    out: Path, part: tuple[int, int] = (1, 1), now: Identity | None = None, groups: Iterable[TextGroup] = ()
) -> Iterator[RowFile]:
    """Hold a folder, or a part of its work, against every other process; gives the rows that are there and come.

    Args:
        now: goes into `run.json`, whose grid is what was asked for so far, by all commands together.
        groups: what will be measured.

    Raises:
        ConfigurationError: another process is at the same part, or divides the work or its grid in another way; or the
            folder holds a run that was measured in another way. Nothing that is there was changed.
        ArtefactError: `run.json` or rows are damaged; likewise.
        RunError: the folder cannot be written.
    """
    with ExitStack() as stack:
        with locked(out, timeout=_PATIENCE):
            plain = json.loads(json.dumps(now))
            saved = None if now is None else joined(out, plain)
            grid = None if now is None else {name: plain["config"][name] for name in GRID}
            mine = {"parts": part[1], "grid": grid}
            _check_beside(out, part, mine)
            stack.enter_context(locked(out, _lock(*part)))
            file = RowFile(out, part, groups)
            write_json(out / _DIVISION, mine)
            if saved is not None:
                write_json(out / "run.json", saved)
        yield file


def _lock(k: int | str, n: int | str) -> str:
    return f"run.{k}-of-{n}.lock"


def _check_beside(out: Path, part: tuple[int, int], mine: dict[str, Any]) -> None:
    """Raise if what other processes measure in `out` may be what this one would."""
    running = sorted(file.name for file in out.glob(_lock("*", "*")) if is_locked(file))
    if _lock(*part) in running:
        raise ConfigurationError(
            f"no other process that measures in the folder {out}",
            f"one that holds its {_lock(*part)}",
            "Wait for it, or divide the work with --part.",
        )
    if not running:
        sweep(out)
    elif (theirs := read_json(out / _DIVISION, "Wait until the other parts have ended.")) != mine:
        raise ConfigurationError(
            f"a part of {theirs.get('parts')}, of the grid {theirs.get('grid')}, as others that measure in {out}",
            f"{part[0]} of {part[1]} of {mine['grid']} beside {', '.join(running)}",
            "Give the same grid and a --part of the same number, or wait until they have ended.",
        )
