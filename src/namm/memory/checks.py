"""Whether a model could have a cache with these contents. They may come from a stranger."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from namm.errors import ArtefactError
from namm.memory.cache import memory_layers
from namm.memory.contents import WAY_OUT, Contents
from namm.memory.identity import Heads, heads_of
from namm.memory.layer import MemoryLayer
from namm.memory.others import DTYPES, flat
from namm.memory.rehearsal import unread
from namm.memory.sequence import Plan

_Shape = tuple[tuple[int, ...], torch.dtype]
_FLAGS = ("is_initialized", "is_conv_states_initialized", "is_recurrent_states_initialized", "has_previous_state")


def check(held: Contents, config: PreTrainedConfig, plan: Plan, dtype: torch.dtype | None = None) -> None:
    """Raise unless a model with this configuration could have a cache with these contents.

    Args:
        dtype: of keys and values; any if left out.

    Raises:
        ArtefactError: it could not.
        ModelError: the configuration does not tell the shape of keys.
    """
    heads, layers = heads_of(config), memory_layers(config, (plan,))
    ours = [str(i) for i, layer in enumerate(layers) if isinstance(layer, MemoryLayer)]
    rest = [str(i) for i, layer in enumerate(layers) if not isinstance(layer, MemoryLayer)]
    _need({*held.counts} == {*ours}, f"slots of the layers {', '.join(ours)}", sorted(held.counts))
    _need({*held.others} == {*rest}, f"values of the layers {', '.join(rest) or '(none)'}", sorted(held.others))
    for i, counts in held.counts.items():
        found = [len(row) for row in counts]
        _need(found == [heads.kv] * held.rows, f"slots of {heads.kv} kv heads in {held.rows} rows of layer {i}", found)
    _check_progress(held, plan)
    first = held.tensors.get(f"{ours[0]}.0.keys")
    kept = dtype or (first.dtype if first is not None else torch.float32)
    _need(kept in DTYPES.values(), f"keys of {', '.join(DTYPES)}", kept)
    shapes = _shapes(held, plan, heads, kept)
    free = {name for name in held.tensors if name.partition(".")[0] in {*held.others, "real", "heard"}}
    missing, superfluous = {*shapes} - {*held.tensors}, {*held.tensors} - {*shapes} - free
    _need(not missing, "all tensors", f"none called {', '.join(sorted(missing))}")
    _need(not superfluous, "no tensors but those of the cache", sorted(superfluous))
    for name, shape in shapes.items():
        _check_tensor(name, held.tensors[name], shape)
    for i, rows in held.counts.items():
        for row, slots in enumerate(rows):
            _check_positions(f"{i}.{row}.positions", held.tensors, slots, held.seen[row])
    _check_padding(held)
    _check_heard(held, config, plan, kept)
    like: dict[tuple[type, str], torch.Size] = {}
    for i in rest:
        tensors = {name.partition(".")[2]: t for name, t in held.tensors.items() if name.partition(".")[0] == i}
        _check_other(layers[int(i)], held.others[i], tensors, held, heads, kept)
        for name, tensor in tensors.items():
            alike = like.setdefault((type(layers[int(i)]), name), tensor.shape)
            _need(tensor.shape == alike, f"{name} of the same shape in all layers of a kind", list(tensor.shape))


def _need(right: bool, expected: str, got: object) -> None:
    if not right:
        text = got if isinstance(got, str) else str(got)
        raise ArtefactError(expected, ascii(text)[1:-1][:200], WAY_OUT)


def _check_tensor(name: str, tensor: Tensor, expected: _Shape) -> None:
    shape, dtype = expected
    got = f"{tensor.dtype} {list(tensor.shape)}"
    _need((tuple(tensor.shape), tensor.dtype) == expected, f"{name} of {dtype} {list(shape)}", got)
    if dtype.is_floating_point:
        _need(bool(torch.isfinite(tensor).all()), f"finite numbers in {name}", "NaN or infinity")
    if dtype == torch.bool:
        _need(not bool((tensor.view(torch.uint8) > 1).any()), f"true and false in {name}", "other bytes")


# -- memory layers -----------------------------------------------------------------------------------------------------


def _check_progress(held: Contents, plan: Plan) -> None:
    """Numbers that follow from each other."""
    _need(len(held.updates) == held.rows, f"updates of {held.rows} rows", held.updates)
    _need((held.rows > 0) == (held.columns > 0), "columns of at least one row, or none", f"{held.rows} rows")
    for seen, updates in zip(held.seen, held.updates, strict=True):
        _need(1 <= seen <= held.columns, f"1 to {held.columns} tokens in a row, the columns read", seen)
        due = plan.updates(seen)
        waits = updates == due - 1 and plan.policy.rehearsal is not None
        _need(updates == due or waits, f"{due} updates after {seen} tokens", updates)


def _shapes(held: Contents, plan: Plan, heads: Heads, dtype: torch.dtype) -> dict[str, _Shape]:
    """Shape and dtype of every tensor of memory layers."""
    policy = plan.policy
    shapes: dict[str, _Shape] = {}
    for i, rows in held.counts.items():
        for row, counts in enumerate(rows):
            seen, slots, place = held.seen[row], sum(counts), f"{i}.{row}."
            shapes[place + "keys"] = shapes[place + "values"] = (slots, heads.dim), dtype
            shapes[place + "positions"] = (slots,), torch.int32
            shapes[place + "state"] = (policy.channels, slots), plan.state_dtype(dtype)
            if policy.channels and plan.next_update(seen) is not None:
                queries = min(policy.overlap + seen % policy.hop, seen)
                shapes[place + "query"] = (heads.kv, heads.group, queries, heads.dim), dtype
                shapes[place + "lse"] = (heads.kv, heads.group, queries), torch.float32
    return shapes


def _check_positions(name: str, tensors: dict[str, Tensor], slots: list[int], seen: int) -> None:
    for head in tensors[name].split(slots):
        ascending = bool((head[1:] > head[:-1]).all())  # a difference could overflow
        inside = not len(head) or (int(head[0]) >= 0 and int(head[-1]) < seen)
        _need(ascending and inside, f"ascending tokens below {seen} in {name}", "others")


def _check_padding(held: Contents) -> None:
    """As many real tokens as were seen."""
    named = [name for name in held.tensors if name.startswith("real")]
    if not named:
        right = held.padded or all(seen == held.columns for seen in held.seen)
        _need(right, f"{held.columns} tokens in rows without padding", held.seen)
        return
    real = held.tensors[named[0]]
    _need(named == ["real"] and real.ndim == 2, "one mask of real tokens", named)
    known = real.shape[1]
    _check_tensor("real", real, ((held.rows, known), torch.bool))
    later = [seen - count for seen, count in zip(held.seen, real.sum(1).tolist(), strict=True)]
    _need(all(0 <= count <= held.columns - known for count in later), "as many real tokens as were seen", later)


def _check_heard(held: Contents, config: PreTrainedConfig, plan: Plan, dtype: torch.dtype) -> None:
    """Tokens that wait for their rehearsal: the model knows them, and they are all there."""
    there = sorted(name for name in held.tensors if name.startswith("heard"))
    waiting = [unread(plan, *row) for row in zip(held.seen, held.updates, strict=True)]
    if not there and not any(waiting):
        return
    rehearses = plan.policy.rehearsal is not None
    whole = rehearses and there == ["heard.real", "heard.tokens"]
    _need(whole, "tokens that wait for their rehearsal, if there is one", there)
    tokens, real = held.tensors["heard.tokens"], held.tensors["heard.real"]
    _need(tokens.ndim in (2, 3) and tokens.shape[1] <= held.columns, "heard tokens", list(tokens.shape))
    shape, text = (held.rows, tokens.shape[1]), config.get_text_config(decoder=True)
    _check_tensor("heard.real", real, (shape, torch.bool))
    if tokens.ndim == 3:  # embeddings
        _check_tensor("heard.tokens", tokens, ((*shape, getattr(text, "hidden_size", 0)), dtype))
    else:
        _check_tensor("heard.tokens", tokens, (shape, torch.int64))
        known = getattr(text, "vocab_size", 0)
        _need(not bool(((tokens < 0) | (tokens >= known)).any()), f"tokens below {known}", "others")
    for seen, count, least in zip(held.seen, real.sum(1).tolist(), waiting, strict=True):
        _need(least <= count <= seen, f"{least} tokens or more that wait for their rehearsal", count)


# -- layers of another kind --------------------------------------------------------------------------------------------


def _check_other(
    fresh: Any, plain: dict[str, Any], tensors: dict[str, Tensor], held: Contents, heads: Heads, dtype: torch.dtype
) -> None:
    """Whether a layer that has read nothing could come to hold these values and tensors."""
    kind, known = type(fresh).__name__, flat(fresh)
    for name, tensor in tensors.items():
        _need(name in known and known[name] is None, f"tensors of a {kind}", name)
        right = tensor.ndim >= 2 and tensor.shape[0] == held.rows and tensor.dtype in (dtype, torch.float32)
        _need(right, f"{name} of {held.rows} rows in a {kind}", f"{tensor.dtype} {list(tensor.shape)}")
        _check_tensor(name, tensor, (tuple(tensor.shape), tensor.dtype))
    for name, value in plain.items():
        stem, _, key = name.partition(".")
        if name == "dtype":
            right = value == str(dtype).removeprefix("torch.")
        elif name == "cumulative_length":
            right = type(value) is int and value == held.columns
        elif stem == "conv_kernel_size":
            states = tensors.get(f"conv_states.{key}")
            right = type(value) is int and states is not None and value == states.shape[-1]
        else:
            right = stem in _FLAGS and type(value) is bool
        _need(right and (name in known or name == "dtype"), f"values of a {kind}", f"{name} = {value}")
    after = known | plain
    for name in known:
        stem, _, key = name.partition(".")
        there = f"{stem}.{key}" in tensors
        if stem in ("conv_states", "recurrent_states"):
            told = [after.get(f"is_{stem}_initialized.{key}")]
            if stem == "conv_states":
                told += [after.get(f"has_previous_state.{key}"), after.get(f"conv_kernel_size.{key}") is not None]
            _need(all(flag is there for flag in told), f"flags that {name} of a {kind} is there, or not", told)
    if "keys" in known and not known["is_initialized"]:
        window = known.get("sliding_window")
        length = held.columns if window in (None, 1) else min(held.columns, window - 1)
        for name in ("keys", "values") if held.rows else ():
            _need(name in tensors, f"{name} of a {kind}", "none")
            _check_tensor(name, tensors[name], ((held.rows, heads.kv, length, heads.dim), dtype))
        _need(after["is_initialized"] is (held.rows > 0), f"a {kind} that has begun", after["is_initialized"])
        read = after.get("cumulative_length", held.columns)
        _need(read == held.columns, f"{held.columns} columns in a {kind}", read)
