"""Runs that are stopped and go on: a folder belongs to one configuration, a checkpoint is whole or not there.

For trainings by gradient; an evolution keeps what it was told, see `namm.evolution.checkpoint`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from namm.errors import ArtefactError, ConfigurationError
from namm.files import locked, read, write
from namm.json_files import read_json, write_json

_AFRESH = "Remove it to start again."
_SIZE = 64  # of the checksum, in bytes


@contextmanager
def open_run(folder: Path, now: dict[str, Any], grows: tuple[str, ...] = ()) -> Iterator[None]:
    """Hold the folder of a run, whose `run.json` says the values `now`.

    Args:
        grows: names of values that may differ from those of the run that is there.

    Raises:
        ConfigurationError: it holds another run, or another process is at it.
        ArtefactError: its `run.json` is damaged.
        RunError: it cannot be written.
    """
    with locked(folder):
        file, now = folder / "run.json", json.loads(json.dumps(now))
        if file.exists():
            check_same(folder, read_json(file, "Mend it, or use another folder."), now, grows)
        write_json(file, now)
        yield


def check_same(folder: Path, old: dict[str, Any], now: dict[str, Any], grows: tuple[str, ...] = ()) -> None:
    """Raise unless the run in `folder`, whose values are `old`, is the one asked for.

    Args:
        grows: names of values that may differ.

    Raises:
        ConfigurationError: it is another; the message names what differs.
    """
    if differ := sorted(name for name in now if name not in grows and old.get(name) != now[name]):
        raise ConfigurationError(
            f"the run in {folder}, with " + ", ".join(f"{name} = {old.get(name)!r}" for name in differ),
            ", ".join(repr(now[name]) for name in differ),
            "Use another folder, or the same values.",
        )


def save_checkpoint(file: Path, state: dict[str, Any]) -> None:
    """Write `state`, behind its checksum, in the place of what was there, whole or not at all."""
    stream = io.BytesIO()
    torch.save(state, stream)
    data = stream.getvalue()
    write(file, _checksum(data) + data)


def read_checkpoint(file: Path, needs: Iterable[str]) -> dict[str, Any] | None:
    """What was saved, without running code from it; None if there is nothing.

    Args:
        needs: names that stand in it.

    Raises:
        ArtefactError: the file is damaged, or of another kind.
    """
    if not file.exists():
        return None
    data = read(file, _AFRESH)
    if data[:_SIZE] != _checksum(data[_SIZE:]):
        raise ArtefactError("a whole checkpoint", f"{file}, with another checksum", _AFRESH)
    state: dict[str, Any] = torch.load(io.BytesIO(data[_SIZE:]), weights_only=True)
    if missing := set(needs) - state.keys():
        raise ArtefactError(f"a checkpoint with {', '.join(sorted(missing))}", f"{file}, of another run", _AFRESH)
    return state


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()
