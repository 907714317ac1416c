"""Runs that are stopped and go on: a folder belongs to one configuration, and a checkpoint is whole or not there.

For trainings by gradient; an evolution keeps what it was told, see `namm.evolution.checkpoint`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from namm.errors import ArtefactError, ConfigurationError


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
            ", ".join(repr(now[name]) for name in differ), "Use another folder, or the same values.",
        )  # fmt: skip


def save_checkpoint(file: Path, state: dict[str, Any]) -> None:
    """Write `state` in the place of what was there, whole or not at all."""
    scratch = file.with_suffix(".new")
    torch.save(state, scratch)
    os.replace(scratch, file)


def read_checkpoint(file: Path) -> dict[str, Any] | None:
    """What was saved, without running code from it; None if there is nothing.

    Raises:
        ArtefactError: the file is damaged.
    """
    if not file.exists():
        return None
    try:
        return torch.load(file, weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ArtefactError("a whole checkpoint", f"{file}: {error}", "Remove it to start again.") from error
