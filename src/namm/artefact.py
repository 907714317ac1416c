"""Saved memories: a folder of `config.json`, `model.safetensors` and a model card. Never pickle.

The folder is what `NAMM.save_pretrained` writes and what the hub holds. The configuration carries a checksum of the
weights file, so that a memory that was cut short or altered does not decide anything.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as tensors_to_bytes

from namm import files
from namm.errors import ArtefactError, NotFoundError, nearest, reason
from namm.json_files import read_json, write_json
from namm.network import FORMAT_VERSION, NAMM, NAMMConfig
from namm.selection import WAYS, is_share

_RIGHT: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "features": ("text", lambda value: type(value) is str),
    "trained_on": ("text", lambda value: type(value) is str),
    "width": ("a positive whole number", lambda value: type(value) is int and value > 0),
    "update_interval": ("a positive whole number", lambda value: type(value) is int and value > 0),
    "per": ('"head", "layer" or "model"', lambda value: value in WAYS),
    "safeguard": ('a share in [0, 1] or "auto"', lambda value: value == "auto" or is_share(value)),
    "rehearses": ('"model" or "queries"', lambda value: value in ("model", "queries")),
    "window": ("a positive whole number", lambda value: type(value) is int and value > 0),
    "rotated": ('true, false or "auto"', lambda value: type(value) is bool or value == "auto"),
    "competes": ("true or false", lambda value: type(value) is bool),
    "asked": ('"held" or "window"', lambda value: value in ("held", "window")),
    "calibrated": ("true or false", lambda value: type(value) is bool),
    "rehearsal": ("a share in (0, 1]", lambda value: type(value) in (int, float) and 0 < value <= 1),
}
_BUILTIN = Path(__file__).with_name("data") / "memories"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_AGAIN = "Fetch or save the memory again."

_ONCE = "It reads a text once."
_TWICE = "Before each decision the model reads the last tokens again (a rehearsal), which costs a second prefill."
_CARD = """---
library_name: namm
license: apache-2.0
tags: [namm, kv-cache, memory]
---
# A NAMM: a learned memory for transformers

A Neural Attention Memory Model of {size:,} parameters (features "{features}", width {width}). It reads how a model
attends and decides, per layer and head, which cached tokens stay. {reading}

```python
import namm

with namm.attach(model, "path/or/hub-id", namm.Budget(fraction=0.25), update_interval={interval}):
    model.generate(**inputs)
```

Evolved on: {trained_on}
"""


def save(network: NAMM, path: Path) -> Path:
    """Write `network` to the folder `path`, which is created; returns it."""
    with files.writing(path):
        path.mkdir(parents=True, exist_ok=True)
    tensors = network.tensors() | {"norm_mean": network.mean, "norm_var": network.var}
    weights = tensors_to_bytes({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()})
    files.write(path / WEIGHTS, weights)
    write_json(path / CONFIG, dataclasses.asdict(network.config) | {"sha256": _checksum(weights)}, indent=2)
    c = network.config
    card = _CARD.format(
        size=c.size,
        features=c.features,
        width=c.width,
        interval=c.update_interval,
        reading=_TWICE if c.feature_set.rehearses and c.rehearses == "model" else _ONCE,
        trained_on=c.trained_on or "unknown",
    )
    files.write(path / CARD, card)
    return path


def builtin_memories() -> dict[str, Path]:
    """Memories shipped with the package: name to folder."""
    return {f"builtin:{path.name}": path for path in sorted(_BUILTIN.glob("*")) if (path / CONFIG).exists()}


def load(path_or_id: str | Path, revision: str | None = None) -> NAMM:
    """Read a memory from a folder or the hub; see `NAMM.from_pretrained`."""
    name, builtin = str(path_or_id), builtin_memories()
    if name.startswith("builtin:") and name not in builtin:
        raise NotFoundError("a memory shipped with this version", repr(name), nearest(name, builtin))
    path = builtin.get(name, Path(path_or_id))
    if not path.is_dir():
        path = _download(name, revision)
    config, checksum = _read_config(path)
    try:
        weights = files.read(path / WEIGHTS, _AGAIN)
    except NotFoundError as error:  # the folder is one, and not whole
        raise ArtefactError(error.expected, error.got, _AGAIN) from error
    found = _checksum(weights)
    if found != checksum:
        raise ArtefactError(
            f"{WEIGHTS} with sha256 {checksum[:12]}..", f"{found[:12]}..",
            f"The file is truncated or altered. {_AGAIN}",
        )  # fmt: skip
    try:
        tensors = tensors_of(weights)
    except SafetensorError as error:
        raise ArtefactError(f"a readable {WEIGHTS}", error, _AGAIN) from error
    expected = {*config.shapes, "norm_mean", "norm_var"}
    if set(tensors) != expected:
        raise ArtefactError(
            f"the tensors {sorted(expected)}", sorted(tensors), "This is no memory of this feature layout."
        )
    for name, shape in config.shapes.items():
        if tuple(tensors[name].shape[-len(shape) :]) != shape:
            raise ArtefactError(
                f"{name} of shape {list(shape)}", list(tensors[name].shape),
                "The configuration and the weights belong to different memories.",
            )  # fmt: skip
    if len({tensors[name].shape[: -len(shape)] for name, shape in config.shapes.items()}) > 1:
        raise ArtefactError("as many candidates in every tensor", "different numbers", _AGAIN)
    flat = [tensors[name].flatten(-len(shape)) for name, shape in config.shapes.items()]
    return NAMM.from_vector(torch.cat(flat, dim=-1), tensors["norm_mean"], tensors["norm_var"], config)


def push(network: NAMM, repo_id: str, **options: Any) -> str:
    """Upload to the hub repository `repo_id`, made if needed; returns the commit's address."""
    import tempfile

    api = HfApi()
    api.create_repo(repo_id, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save(network, Path(folder))
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **options))


def _read_config(path: Path) -> tuple[NAMMConfig, str]:
    file = path / CONFIG
    values = read_json(file, "Give a folder that save_pretrained wrote; a damaged one is fetched or saved again.")
    known = {field.name for field in dataclasses.fields(NAMMConfig)}
    if not {"features", "width", "format_version", "sha256"} <= set(values):
        raise ArtefactError(
            f"a NAMM configuration in {file}", "another one", "Give a folder that save_pretrained wrote."
        )
    version = values["format_version"]
    if version != FORMAT_VERSION:
        raise ArtefactError(f"format version {FORMAT_VERSION}", version, "Use the version of namm that saved it.")
    checksum = values.pop("sha256")
    for name, right in _RIGHT.items():
        value = values.get(name, getattr(NAMMConfig, name))
        if not right[1](value):
            raise ArtefactError(f"{right[0]} for {name} in {file}", repr(value), _AGAIN)
    unknown = set(values) - known
    if unknown:
        raise ArtefactError(f"the fields {sorted(known)}", sorted(unknown), "Use the version of namm that saved it.")
    return NAMMConfig(**values), str(checksum)


def _download(repo_id: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=[CONFIG, WEIGHTS, CARD]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise NotFoundError(
            "a folder, or a hub id that can be reached", f"{repo_id!r} ({reason(error)})",
            "Check the spelling and the network, or give the path of a saved memory.",
        ) from error  # fmt: skip


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
