"""Layers with a cache of their own kind (sliding window, linear attention), as plain values and tensors.

What is kept is what tells a layer from a fresh one of the same kind. Tensors in dictionaries are named "states.0".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from namm.errors import ArtefactError, ModelError
from namm.memory.identity import Heads

DTYPES = {str(t).removeprefix("torch."): t for t in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}
_FLAGS = ("is_initialized", "is_conv_states_initialized", "is_recurrent_states_initialized", "has_previous_state")
_STATES = {"is_conv_states_initialized": "conv_states", "is_recurrent_states_initialized": "recurrent_states"}
_WAY_OUT = "The file is altered or of another version: save the cache again."


def changes(layer: Any, fresh: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What tells `layer` from `fresh`: plain values and tensors by name.

    Raises:
        ModelError: it holds something else.
    """
    plain: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    before = _flat(fresh)
    for name, value in _flat(layer).items():
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


def check(  # noqa: PLR0912
    fresh: Any,
    plain: dict[str, Any],
    tensors: dict[str, Tensor],
    rows: int,
    columns: int,
    heads: Heads,
    dtype: torch.dtype,
) -> None:
    """Raise unless these are the changes of a layer that has read `columns` columns of `rows` rows.

    Args:
        fresh: a layer that has read nothing.
        dtype: of keys and values; states of linear attention may also be float32.

    Raises:
        ArtefactError: they are not.
    """
    kind, known = type(fresh).__name__, _flat(fresh)

    def refuse(expected: str, got: object) -> ArtefactError:
        return ArtefactError(f"{expected} in a {kind}", ascii(got)[:100], _WAY_OUT)

    for name, value in plain.items():
        stem, _, key = name.partition(".")
        if name == "dtype":
            right = isinstance(value, str) and DTYPES.get(value) == dtype
        elif name == "cumulative_length":
            right = name in known and type(value) is int and value == columns
        elif stem == "conv_kernel_size":
            states = tensors.get(f"conv_states.{key}")
            right = name in known and type(value) is int and states is not None and value == states.shape[-1]
        else:
            right = name in known and stem in _FLAGS and type(value) is bool
        if not right:
            raise refuse("its own values", f"{name} = {value}")
    for name, tensor in tensors.items():
        if name not in known or known[name] is not None:
            raise refuse("its own tensors", name)
        if tensor.dtype not in (dtype, torch.float32) or tensor.ndim < 2 or tensor.shape[0] != rows:
            raise refuse(f"{name} with a row for each of {rows}", f"{tensor.dtype} {list(tensor.shape)}")
        if not bool(torch.isfinite(tensor).all()):
            raise refuse(f"finite {name}", "NaN or infinity")
    after = known | plain | tensors
    for name, value in after.items():
        stem, _, key = name.partition(".")
        if stem in _STATES and value != (f"{_STATES[stem]}.{key}" in tensors):
            raise refuse(f"{_STATES[stem]} that are there if {stem} says so", value)
        if stem == "has_previous_state" and value and f"conv_states.{key}" not in tensors:
            raise refuse("a state that has_previous_state tells of", "none")
    if "keys" in known and not known["is_initialized"]:
        window = known.get("sliding_window")
        length = columns if window in (None, 1) else min(columns, window - 1)
        for name, dim in (("keys", heads.key_dim), ("values", heads.value_dim)):
            shape = [rows, heads.kv, length, dim]
            got = list(tensors[name].shape) if name in tensors else None
            if got != (shape if rows else None):
                raise refuse(f"{name} of shape {shape}", got)
        if after["is_initialized"] != bool(rows) or after.get("cumulative_length", columns) != columns:
            raise refuse(f"{columns} columns", after.get("cumulative_length", after["is_initialized"]))
        if rows and not tensors["keys"].dtype == tensors["values"].dtype == DTYPES.get(plain.get("dtype", "")):
            raise refuse(f"keys and values of {dtype}", tensors["keys"].dtype)


def fill(layer: Any, plain: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> None:
    """Give a fresh layer these changes, which were checked."""
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


def _flat(layer: Any) -> dict[str, Any]:
    """Attributes by name, those in dictionaries as "name.key"."""
    flat: dict[str, Any] = {}
    for name, value in vars(layer).items():
        flat |= {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
    return flat
