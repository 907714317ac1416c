"""Layers with a cache of their own kind (sliding window, linear attention), as plain values and tensors.

What is kept is what tells a layer from a fresh one of the same kind. Tensors in dictionaries are named "states.0".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from namm.errors import ModelError

DTYPES = {str(t).removeprefix("torch."): t for t in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}


def changes(layer: Any, fresh: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What tells `layer` from `fresh`: plain values and tensors by name.

    Raises:
        ModelError: it holds something else.
    """
    plain: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    before = flat(fresh)
    for name, value in flat(layer).items():
        if isinstance(value, Tensor):
            old = before.get(name)
            if not (isinstance(old, Tensor) and torch.equal(old, value.to(old.device))):
                tensors[name] = value
        elif isinstance(value, torch.dtype):
            plain[name] = str(value).removeprefix("torch.")
        elif value is None or isinstance(value, (bool, int)):
            if name not in before or before[name] != value:
                plain[name] = value
        elif not isinstance(value, torch.device):
            raise ModelError(
                "layers that hold tensors, numbers and flags", f"a {type(layer).__name__} with {name}, "
                f"a {type(value).__name__}", "Caches of this model cannot be saved yet.",
            )  # fmt: skip
    return plain, tensors


def fill(layer: Any, plain: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> None:
    """Give a fresh layer these changes."""
    for name, value in vars(layer).items():
        if isinstance(value, Tensor):
            setattr(layer, name, value.to(device))
    for name, value in (plain | tensors).items():
        stem, _, key = name.partition(".")
        here = value.to(device, copy=True) if isinstance(value, Tensor) else value
        if key:
            getattr(layer, stem)[int(key)] = here
        elif name == "dtype":
            layer.dtype, layer.device = DTYPES[value], device
        else:
            setattr(layer, name, here)


def flat(layer: Any) -> dict[str, Any]:
    """Attributes of a layer by name, those in dictionaries as "name.key"."""
    named: dict[str, Any] = {}
    for name, value in vars(layer).items():
        named |= {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
    return named
