"""The folder of an evaluation: it belongs to one configuration, whose grid may grow."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from filelock import FileLock
from transformers import PreTrainedModel

from namm.errors import ConfigurationError
from namm.evaluation.config import GRID
from namm.policies import MemoryPolicy, NAMMPolicy

Identity = dict[str, Any]


def identity(
    config: Any, policies: dict[str, MemoryPolicy], model: PreTrainedModel, sources: dict[str, str]
) -> Identity:
    """What stands in `run.json`: the configuration, a dataclass, and what its names stood for."""
    networks = {name: policy.network for name, policy in policies.items() if isinstance(policy, NAMMPolicy)}
    return {
        "config": dataclasses.asdict(config),
        "weights": {"path": model.name_or_path, "dtype": str(model.dtype), "sha256": _checksum(model)},
        "memories": {
            name: {
                "sha256": hashlib.sha256(b"".join(map(_bytes, (n.theta, n.mean, n.var)))).hexdigest(),
                "trained_on": n.config.trained_on, "update_interval": n.config.update_interval,
            }
            for name, n in networks.items()
        },
        "sources": sources,
    }  # fmt: skip


def _checksum(model: PreTrainedModel) -> str:
    """Of the first numbers of every parameter, which tells models and precisions apart."""
    parts = (name.encode() + _bytes(p.detach().flatten()[:64]) for name, p in model.named_parameters())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()


def check_folder(out: Path) -> None:
    """Raise if the folder holds something else than an evaluation."""
    if out.exists() and not (out / "run.json").exists():
        others = [file.name for file in out.iterdir() if not file.name.startswith("run.")]
        if others:
            raise ConfigurationError(
                "an empty or new folder, or one with an evaluation",
                f"{out}, which holds {others[0]}",
                "Choose another.",
            )


def start_folder(out: Path, now: Identity) -> None:
    """Write `run.json`; its grid is what was asked for so far, by all commands together.

    Raises:
        ConfigurationError: the folder holds a run that was measured in another way.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = out / "run.json"
    with FileLock(out / "run.lock"):
        if file.exists():
            now = _joined(out, json.loads(file.read_text()), json.loads(json.dumps(now)))
        write(file, json.dumps(now, indent=1))


def _joined(out: Path, saved: Identity, now: Identity) -> Identity:
    """The grid may grow, the measurement may not change."""
    before, after = ({k: v for k, v in one["config"].items() if k not in GRID} for one in (saved, now))
    for name in ("weights", "memories"):
        before, after = (
            before | {f"{name}: {k}": v for k, v in saved[name].items()},
            after | {f"{name}: {k}": v for k, v in now[name].items()},
        )
    changed = [name for name, value in after.items() if before.get(name, value) != value]
    if changed:
        told = "; ".join(f"{name}: {before[name]!r}" for name in changed)
        raise ConfigurationError(
            f"the configuration of the evaluation in {out} ({told})", f"another {', '.join(changed)}",
            "Use the same options to go on with it, or another folder.",
        )  # fmt: skip
    config = dict(now["config"])
    for name in GRID:
        old, new = saved["config"][name], config[name]
        if name != "samples":
            config[name] = list(dict.fromkeys([*old, *new]))
        else:  # 0 stands for all
            config[name] = max(old, new) if old and new else 0
    return {
        "config": config, "weights": now["weights"], "memories": saved["memories"] | now["memories"],
        "sources": saved["sources"] | now["sources"],
    }  # fmt: skip


def write(file: Path, text: str) -> None:
    """Write a file whole or not at all; another process may write it at the same time."""
    scratch = file.with_name(f"{file.stem}.{uuid4().hex}")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, file)
