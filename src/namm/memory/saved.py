"""Caches as bytes: read a long text once, put its memory to disk, and go on with it later or elsewhere.

    cache.save("chapter.safetensors", model)
    cache = namm.MemoryCache.load("chapter.safetensors", model, "h2o", namm.Budget(fraction=0.25))

The bytes are one safetensors file, never pickle; its header names the model and the plan. A file may come from a
stranger, so everything in it is checked against the configuration and the plan before a model sees it.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from namm.errors import ArtefactError, ConfigurationError, ModelError, NotFoundError
from namm.memory.cache import MemoryCache
from namm.memory.checks import check
from namm.memory.contents import Contents, fill, taken
from namm.memory.identity import describe, fingerprint
from namm.memory.layer import MemoryLayer
from namm.memory.others import DTYPES
from namm.memory.sequence import Plan

__all__ = ["describe", "fingerprint", "pack", "read_notes", "unpack"]

LAYOUT = 1
_HEADER, _CHECKSUM = "namm", "namm.sha256"  # their names among the notes
_DTYPES = {*DTYPES.values(), torch.int32, torch.int64, torch.bool}
_WAY_OUT = "The file is truncated, altered or of another kind: save the cache again."


def pack(cache: MemoryCache, model_print: str, notes: dict[str, str] | None = None) -> bytes:
    """A cache as a safetensors file.

    Args:
        model_print: the `fingerprint` of the model that read the text.
        notes: any text by name, which `read_notes` finds again.

    Raises:
        ConfigurationError: notes that are no text.
        ModelError: a cache that is in the middle of a call, whose rows follow a plan each, or of a model whose
            configuration does not tell the shape of its keys.
    """
    notes = notes or {}
    ours = {_HEADER, _CHECKSUM} & notes.keys()
    if ours or not all(_is_text(part) for pair in notes.items() for part in pair):
        raise ConfigurationError(
            f"notes of text by name, none called {_HEADER}", ascii(notes)[:100], "Give them as text."
        )
    first = next(layer for layer in cache.layers if isinstance(layer, MemoryLayer))
    if len(first.plans) != 1:
        raise ModelError("a cache with one plan for all rows", f"{len(first.plans)} plans", "Read the rows alone.")
    held = taken(cache, first.plans[0])
    try:
        check(held, first.config, first.plans[0])
    except ArtefactError as error:
        raise ModelError(error.expected, error.got, "Such a cache cannot be saved.") from error
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in held.tensors.items()}
    own = {"layout": LAYOUT, "model": model_print, "plan": describe(first.plans[0])}
    header = json.dumps(own | held.header())
    return save(tensors, {**notes, _HEADER: header, _CHECKSUM: _digest(header, tensors)})


def unpack(
    data: bytes,
    config: PreTrainedConfig,
    plan: Plan,
    model_print: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> tuple[MemoryCache, dict[str, str]]:
    """The cache that `pack` gave as bytes, and its notes. The bytes may come from anywhere.

    What cannot be known is not checked: whether the numbers are those that the model would have, and the shape of
    linear attention's states, which no configuration tells.

    Args:
        config: the model's own config object (`model.config`).
        plan: what the memory does, the same as then.
        model_print: the `fingerprint` of the model.
        device: where the model is.
        dtype: of the model's keys; any if left out.

    Raises:
        ArtefactError: the bytes are damaged, of another model or plan, or no cache that this model could have.
        ModelError: the configuration does not tell the shape of the model's keys.
    """
    header, notes, tensors = _parsed(data)
    for name, here in (("layout", LAYOUT), ("model", model_print), ("plan", describe(plan))):
        got = header.pop(name, None)
        if type(got) is not type(here) or got != here:
            raise ArtefactError(
                f"a cache of {name} {here}", ascii(got)[:300], f"Load it with the {name} that it was saved with."
            )
    held = Contents.of(header, tensors)
    check(held, config, plan, dtype)
    cache = MemoryCache.planned(config, (plan,))
    fill(cache, held, torch.device(device))
    return cache, notes


def write(cache: MemoryCache, path: Path, model: PreTrainedModel, notes: dict[str, str] | None) -> Path:
    """See `MemoryCache.save`."""
    data = pack(cache, fingerprint(model), notes)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        scratch.write_bytes(data)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return path


def read(path: Path, model: PreTrainedModel, plan: Plan) -> MemoryCache:
    """See `MemoryCache.load`."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError("a saved cache", path, "Check the path.") from error
    except OSError as error:
        raise ArtefactError(f"a saved cache in {path}", error, _WAY_OUT) from error
    return unpack(data, model.config, plan, fingerprint(model), model.device)[0]


def read_notes(path: Path) -> dict[str, str]:
    """The notes in a file, without its tensors.

    Raises:
        ArtefactError: it is no saved cache.
        NotFoundError: there is none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            notes = dict(file.metadata() or {})
    except FileNotFoundError as error:
        raise NotFoundError("a saved cache", path, "Check the path.") from error
    except (SafetensorError, OSError) as error:
        raise ArtefactError(f"a saved cache in {path}", error, _WAY_OUT) from error
    if _HEADER not in notes:
        raise ArtefactError(f"a saved cache in {path}", "another safetensors file", _WAY_OUT)
    return {name: text for name, text in notes.items() if name not in (_HEADER, _CHECKSUM)}


def notes_in(data: bytes) -> dict[str, str]:
    """The notes in a file that is given as bytes, without a look at its tensors.

    Raises:
        ArtefactError: it is no saved cache.
    """
    notes = _metadata(data)
    if _HEADER not in notes:
        raise ArtefactError("a saved cache", "another safetensors file", _WAY_OUT)
    return {name: str(text) for name, text in notes.items() if name not in (_HEADER, _CHECKSUM)}


def _metadata(data: bytes) -> dict[str, Any]:
    """What a safetensors file says beside its tensors."""
    size = int.from_bytes(data[:8], "little")
    try:
        notes = json.loads(data[8 : 8 + size])["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtefactError("a saved cache", ascii(str(error))[:200], _WAY_OUT) from error
    if not isinstance(notes, dict):
        raise ArtefactError("a saved cache", "a file without notes", _WAY_OUT)
    return notes


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)  # lone surrogates


def _parsed(data: bytes) -> tuple[dict[str, Any], dict[str, str], dict[str, Tensor]]:
    """Header, notes and tensors, as they were written; what they say is not checked."""
    try:
        tensors, notes = load(data), _metadata(data)
        text, checksum = notes.pop(_HEADER), notes.pop(_CHECKSUM)
        header = json.loads(text)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, AssertionError, OverflowError) as error:
        raise ArtefactError("a saved cache", ascii(str(error))[:200], _WAY_OUT) from error
    if not isinstance(header, dict) or not {tensor.dtype for tensor in tensors.values()} <= _DTYPES:
        raise ArtefactError("a saved cache", "another safetensors file", _WAY_OUT)
    if checksum != _digest(text, tensors):
        raise ArtefactError("contents with the checksum that was saved", "others", _WAY_OUT)
    return header, notes, tensors


def _digest(header: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
