"""What an evaluation is, as `run.json` says it: one way of measuring, over a grid that may grow."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from namm.configuration import Section
from namm.errors import ArtefactError, ConfigurationError
from namm.evaluation.config import GRID
from namm.json_files import read_json
from namm.memory.identity import fingerprint
from namm.policies import MemoryPolicy, NAMMPolicy

Identity = dict[str, Any]
_PARTS = ("config", "weights", "memories", "sources")
_ANOTHER = "Mend it, or use another folder."


def identity_of(
    config: Section, policies: dict[str, MemoryPolicy], model: PreTrainedModel, sources: dict[str, str]
) -> Identity:
    """What stands in `run.json`: the configuration and what its names stood for."""
    networks = {name: policy.network for name, policy in policies.items() if isinstance(policy, NAMMPolicy)}
    return {
        "config": config.model_dump(),
        "weights": {"path": model.name_or_path, "dtype": str(model.dtype), "fingerprint": fingerprint(model)},
        "memories": {
            name: {
                "sha256": hashlib.sha256(b"".join(map(_bytes, (n.theta, n.mean, n.var)))).hexdigest(),
                "trained_on": n.config.trained_on,
                "update_interval": n.config.update_interval,
            }
            for name, n in networks.items()
        },
        "sources": sources,
    }


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()


def read_identity(out: Path) -> Identity:
    """What `run.json` says.

    Raises:
        ArtefactError: it is damaged.
    """
    file = out / "run.json"
    saved = read_json(file, _ANOTHER)
    config = saved.get("config")
    if not (isinstance(config, dict) and all(isinstance(saved.get(n), dict) for n in _PARTS) and _is_grid(config)):
        raise ArtefactError(f"the configuration of an evaluation in {file}", "another content", _ANOTHER)
    return saved


def _is_grid(config: dict[str, Any]) -> bool:
    lists = [config.get(name) for name in GRID if name != "samples"]
    plain = all(isinstance(x, list) and all(isinstance(value, str | int | float) for value in x) for x in lists)
    return plain and isinstance(config.get("samples"), int)


def joined(out: Path, now: Identity) -> Identity:
    """What `run.json` will say: the grid may grow, the measurement may not change.

    Raises:
        ConfigurationError: the folder holds a run that was measured in another way.
        ArtefactError: `run.json` is damaged.
    """
    if not (out / "run.json").exists():
        return now
    saved = read_identity(out)
    before, after = ({k: v for k, v in one["config"].items() if k not in GRID} for one in (saved, now))
    for name in ("weights", "memories"):
        before, after = (
            before | {f"{name}: {k}": v for k, v in saved[name].items()},
            after | {f"{name}: {k}": v for k, v in now[name].items()},
        )
    if strange := sorted(saved["config"].keys() - now["config"].keys()):
        raise ArtefactError(f"the names of a configuration in {out / 'run.json'}", ", ".join(strange), _ANOTHER)
    changed = [name for name, value in after.items() if before.get(name, value) != value]
    if changed:
        told = "; ".join(f"{name}: {before[name]!r}" for name in changed)
        raise ConfigurationError(
            f"the configuration of the evaluation in {out} ({told})",
            f"another {', '.join(changed)}",
            "Use the same options to go on with it, or another folder.",
        )
    config = dict(now["config"])
    for name in GRID:
        old, new = saved["config"][name], config[name]
        if name != "samples":
            config[name] = list(dict.fromkeys([*old, *new]))
        else:  # 0 stands for all
            config[name] = max(old, new) if old and new else 0
    return {
        "config": config,
        "weights": now["weights"],
        "memories": saved["memories"] | now["memories"],
        "sources": saved["sources"] | now["sources"],
    }
