"""Caches as bytes: read a long text once, put its memory to disk, and go on with it later or elsewhere.

    cache.save("chapter.safetensors", model)
    cache = namm.MemoryCache.load("chapter.safetensors", model, "h2o", namm.Budget(fraction=0.25))

The bytes are one safetensors file, never pickle. A checksum over all of them finds what was damaged before anything of
it is read, and the header names the model, the plan and the layout that it belongs to. Numbers with a right checksum
are believed: take a file from whom you would take the model.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from transformers import PreTrainedConfig, PreTrainedModel

from namm import files
from namm.compat import device_of
from namm.errors import ArtefactError, ConfigurationError, ModelError, NotFoundError
from namm.memory.attach import find_decoder
from namm.memory.cache import MemoryCache, memory_layers
from namm.memory.contents import Contents, fill, taken
from namm.memory.identity import describe, fingerprint
from namm.memory.layer import MemoryLayer, layers_of
from namm.memory.others import flat
from namm.memory.plan import Plan

__all__ = ["describe", "fingerprint", "pack", "read_notes", "unpack"]

LAYOUT = 2
_HEADER, _CHECKSUM = "namm", "namm.sha256"  # their names among the notes
_BLANK = "0" * 64  # stands for the checksum of all bytes while it is computed
_SEAL = re.compile(rb'"namm\.sha256":"([0-9a-f]{64})"')  # quotes inside of notes are escaped
_WAY_OUT = "The file is truncated, altered or of another kind: save the cache again."


def pack(cache: MemoryCache, model_print: str, notes: dict[str, str] | None = None) -> bytes:
    """A cache as a safetensors file.

    Args:
        model_print: the `fingerprint` of the model that read the text.
        notes: any text by name, which `read_notes` finds again.

    Raises:
        ConfigurationError: notes that are no text.
        ModelError: a cache that is in the middle of a call, whose rows follow a plan each, or with layers that hold
            more than tensors and numbers.
    """
    notes = notes or {}
    ours = {_HEADER, _CHECKSUM} & notes.keys()
    if ours or not all(_is_text(part) for pair in notes.items() for part in pair):
        raise ConfigurationError(
            f"notes of text by name, none called {_HEADER}", ascii(notes)[:100], "Give them as text."
        )
    first = layers_of(cache)[0]
    if len(first.plans) != 1:
        raise ModelError("a cache with one plan for all rows", f"{len(first.plans)} plans", "Read the rows alone.")
    held = taken(cache, first.plans[0])
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in held.tensors.items()}
    header = json.dumps(_belonging(first.config, first.plans[0], model_print) | held.header())
    data = save(tensors, {**notes, _HEADER: header, _CHECKSUM: _BLANK})
    seal = _seal(data)
    assert seal is not None
    return b"".join((data[: seal.start(1)], _digest(data, seal), data[seal.end(1) :]))


def unpack(data: bytes, model: PreTrainedModel, plan: Plan, model_print: str) -> tuple[MemoryCache, dict[str, str]]:
    """The cache that `pack` gave as bytes, each layer's part where that layer computes, and its notes.

    Args:
        model: the one that goes on with it.
        plan: what the memory does, the same as then.
        model_print: the `fingerprint` of the model.

    Raises:
        ArtefactError: the bytes are damaged, no cache, or of another model, plan, layout or version of transformers.
    """
    notes = _notes(data)
    header = json.loads(notes.pop(_HEADER))
    for name, here in _belonging(model.config, plan, model_print).items():
        if (got := header.pop(name, None)) != here:
            raise ArtefactError(
                f"a cache of {name} {here}", ascii(got)[:300], f"Load it with the {name} that it was saved with."
            )
    cache = MemoryCache.planned(model.config, (plan,))
    fill(cache, Contents(**header, tensors=load(data)), _devices(model, len(cache.layers)))
    return cache, notes


def _belonging(config: PreTrainedConfig, plan: Plan, model_print: str) -> dict[str, object]:
    """What must be the same wherever a cache goes on; `layers` differ between versions of transformers."""
    kinds: dict[str, list[int]] = {}
    for i, layer in enumerate(memory_layers(config, (plan,))):
        ours = isinstance(layer, MemoryLayer)
        kind = type(layer).__name__ if ours else f"{type(layer).__name__}({', '.join(sorted(flat(layer)))})"
        kinds.setdefault(kind, []).append(i)
    return {"layout": LAYOUT, "model": model_print, "plan": describe(plan), "layers": kinds}


def _devices(model: PreTrainedModel, layers: int) -> list[torch.device]:
    """Where each layer computes: `device_map` may have put them apart."""
    parts = [part for part in find_decoder(model).modules() if isinstance(getattr(part, "layer_idx", None), int)]
    known = {part.layer_idx: device_of(part) for part in parts}
    return [known.get(i) or model.device for i in range(layers)]


def write(cache: MemoryCache, path: Path, model: PreTrainedModel, notes: dict[str, str] | None) -> Path:
    """See `MemoryCache.save`."""
    data = pack(cache, fingerprint(model), notes)
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, data)
    return path


def read(path: Path, model: PreTrainedModel, plan: Plan) -> MemoryCache:
    """See `MemoryCache.load`."""
    data = files.read(path, "Give the path of a saved cache.")
    return unpack(data, model, plan, fingerprint(model))[0]


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


def _notes(data: bytes) -> dict[str, str]:
    """All notes in the bytes of a file, if they are whole."""
    seal = _seal(data)
    if seal is None:
        raise ArtefactError("a saved cache", "other bytes", _WAY_OUT)
    if seal[1] != _digest(data, seal):
        raise ArtefactError("contents with the checksum that was saved", "others", _WAY_OUT)
    notes: dict[str, str] = json.loads(data[8 : _end_of_notes(data)])["__metadata__"]
    del notes[_CHECKSUM]
    return notes


def _seal(data: bytes) -> re.Match[bytes] | None:
    """Where the checksum stands."""
    return _SEAL.search(data, 8, min(len(data), _end_of_notes(data)))


def _end_of_notes(data: bytes) -> int:
    """A safetensors file begins with the length of its JSON, and its JSON."""
    return 8 + int.from_bytes(data[:8], "little")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)  # lone surrogates


def _digest(data: bytes, seal: re.Match[bytes]) -> bytes:
    """Of all bytes, with `_BLANK` in the place of the checksum."""
    digest, whole = hashlib.sha256(), memoryview(data)
    for part in (whole[: seal.start(1)], _BLANK.encode(), whole[seal.end(1) :]):
        digest.update(part)
    return digest.hexdigest().encode()
