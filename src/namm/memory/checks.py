"""Whether a model could have a cache with these contents. They may come from a stranger."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from namm.errors import ArtefactError
from namm.memory import others
from namm.memory.cache import memory_layers
from namm.memory.contents import WAY_OUT, Contents
from namm.memory.identity import Heads, heads_of
from namm.memory.layer import MemoryLayer
from namm.memory.rehearsal import unread
from namm.memory.sequence import Plan


def check(held: Contents, config: PreTrainedConfig, plan: Plan, dtype: torch.dtype | None = None) -> None:
    """Raise unless a model with this configuration could have a cache with these contents.

    Args:
        dtype: of keys and values; any if left out.

    Raises:
        ArtefactError: it could not.
        ModelError: the configuration does not tell the shape of keys.
    """
    heads, layers = heads_of(config), memory_layers(config, (plan,))
    ours = [i for i, layer in enumerate(layers) if isinstance(layer, MemoryLayer)]
    _check_progress(held, plan)
    _need("slots of each kv head in every row", sorted(held.counts), sorted(map(str, ours)))
    _need(
        "values of each other layer", sorted(held.others), sorted({str(i) for i in range(len(layers))} - {*held.counts})
    )
    for counts in held.counts.values():
        _need(f"slots of {heads.kv} kv heads", [len(row) for row in counts], [heads.kv] * held.rows)
    first = held.tensors.get(f"{ours[0]}.0.keys")
    kept = dtype or (first.dtype if first is not None else torch.float32)
    _need("keys of a floating dtype", kept in others.DTYPES.values(), True)
    shapes = _shapes(held, plan, heads, kept)
    free = [name for name in held.tensors if name.partition(".")[0] in {*held.others, "real", "heard"}]
    _need("tensors", sorted({*held.tensors} - {*free}), sorted(shapes))
    for name, (shape, right) in shapes.items():
        _check_tensor(name, held.tensors[name], shape, right)
    for i in ours:
        for row, seen in enumerate(held.seen):
            _check_positions(held.tensors[f"{i}.{row}.positions"], held.counts[str(i)][row], seen)
    _check_padding(held)
    _check_heard(held, config, plan, kept)
    for name, plain in held.others.items():
        tensors = {n.partition(".")[2]: t for n, t in held.tensors.items() if n.partition(".")[0] == name}
        others.check(layers[int(name)], plain, tensors, held.rows, held.columns, heads, kept)


def _need(expected: str, got: object, right: object) -> None:
    if got != right:
        raise ArtefactError(f"{expected}: {ascii(right)[:200]}", ascii(got)[:200], WAY_OUT)


def _check_progress(held: Contents, plan: Plan) -> None:
    """Numbers that follow from each other."""
    _need("as many updates as rows", len(held.updates), held.rows)
    _need("rows if there are columns", held.rows > 0, held.columns > 0)
    for seen, updates in zip(held.seen, held.updates, strict=True):
        if not 1 <= seen <= held.columns:
            raise ArtefactError(f"rows of 1 to {held.columns} tokens, the columns read", seen, WAY_OUT)
        late = plan.updates(seen) - updates
        if late and not (late == 1 and plan.policy.rehearsal is not None):  # it may wait for its rehearsal
            raise ArtefactError(f"{plan.updates(seen)} updates after {seen} tokens", updates, WAY_OUT)


def _shapes(
    held: Contents, plan: Plan, heads: Heads, dtype: torch.dtype
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every tensor of memory layers."""
    policy = plan.policy
    known: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for i, counts in held.counts.items():
        for row, seen in enumerate(held.seen):
            slots, tail = sum(counts[row]), min(policy.overlap + seen % policy.hop, seen)
            known |= {
                f"{i}.{row}.keys": ((slots, heads.key_dim), dtype),
                f"{i}.{row}.values": ((slots, heads.value_dim), dtype),
                f"{i}.{row}.positions": ((slots,), torch.int32),
                f"{i}.{row}.state": ((policy.channels, slots), plan.state_dtype(dtype)),
            }
            if policy.channels and plan.next_update(seen) is not None:
                known[f"{i}.{row}.query"] = ((heads.kv, heads.group, tail, heads.key_dim), dtype)
                known[f"{i}.{row}.lse"] = ((heads.kv, heads.group, tail), torch.float32)
    return known


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    _need(f"{name} of shape and dtype", (list(tensor.shape), tensor.dtype), (list(shape), dtype))
    if dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
        raise ArtefactError(f"finite numbers in {name}", "NaN or infinity", WAY_OUT)
    if dtype == torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
        raise ArtefactError(f"true and false in {name}", "other bytes", WAY_OUT)


def _check_positions(positions: Tensor, counts: list[int], seen: int) -> None:
    for head, held in enumerate(positions.split(counts)):
        if len(held) and (int(held[0]) < 0 or int(held[-1]) >= seen or not bool((held.diff() > 0).all())):
            raise ArtefactError(f"ascending positions below {seen} in head {head}", "others", WAY_OUT)


def _check_padding(held: Contents) -> None:
    real = held.tensors.get("real")
    if real is None:
        right = held.padded or all(seen == held.columns for seen in held.seen)
    else:
        _need("one mask of real tokens", real.ndim, 2)
        _check_tensor("real", real, (held.rows, real.shape[1]), torch.bool)
        right = real.shape[1] <= held.columns and all(
            0 <= seen - count <= held.columns - real.shape[1]
            for seen, count in zip(held.seen, real.sum(1).tolist(), strict=True)
        )
    _need("real tokens as many as were seen", right, True)
    _need("one mask of real tokens", [n for n in held.tensors if n.startswith("real") and n != "real"], [])


def _check_heard(held: Contents, config: PreTrainedConfig, plan: Plan, dtype: torch.dtype) -> None:
    """Tokens that wait for their rehearsal: known to the model, and all of them there."""
    there = sorted(name for name in held.tensors if name.startswith("heard"))
    waiting = [unread(plan, *row) for row in zip(held.seen, held.updates, strict=True)]
    if not there and not any(waiting):
        return
    _need(
        "tokens that wait for their rehearsal",
        (there, plan.policy.rehearsal is not None),
        (["heard.real", "heard.tokens"], True),
    )
    tokens, real = held.tensors["heard.tokens"], held.tensors["heard.real"]
    text = config.get_text_config(decoder=True)
    _need("heard tokens of 2 or 3 axes", tokens.ndim in (2, 3), True)
    shape = (held.rows, tokens.shape[1])
    _check_tensor("heard.real", real, shape, torch.bool)
    if tokens.ndim == 2:
        _check_tensor("heard.tokens", tokens, shape, tokens.dtype if tokens.dtype == torch.int32 else torch.int64)
        if bool(((tokens < 0) | (tokens >= text.vocab_size)).any()):
            raise ArtefactError(f"tokens below {text.vocab_size}", "others", WAY_OUT)
    else:
        right = tokens.dtype if tokens.dtype in others.DTYPES.values() else dtype
        _check_tensor("heard.tokens", tokens, (*shape, text.hidden_size), right)
    for seen, count, least in zip(held.seen, real.sum(1).tolist(), waiting, strict=True):
        if not least <= count <= seen or shape[1] > held.columns:
            raise ArtefactError(f"{least} tokens that wait for their rehearsal", count, WAY_OUT)
