"""What a cache holds, as numbers and tensors: taken out of a cache, and put into a fresh one.

For layer `i` and row `r` the tensors `i.r.keys` and `i.r.values` (`[slot, dim]`), `i.r.positions` (`[slot]`) and
`i.r.state` (`[channel, slot]`) hold the slots in use of all kv heads, one head after another; `counts[i][r]` says where
a head ends. `i.r.query` and `i.r.lse` are the last queries, while an update is still to come, and `i.r.asking` those
that wait to ask in place. `heard.tokens` wait for their rehearsal, `shown` says which columns the last mask shows and
`read` which were read as tokens, if any is hidden, and layers of another kind hold what they call by other names.
Memory that is free is not written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from namm.errors import ModelError
from namm.memory import others
from namm.memory.cache import MemoryCache, memory_layers
from namm.memory.layer import MemoryLayer, layers_of
from namm.memory.plan import Plan
from namm.memory.queries import hold, joined
from namm.memory.sequence import Sequence
from namm.memory.store import Store, pads

_COMMON = ("shown", "read", "heard.tokens", "heard.real")  # what belongs to no layer alone


@dataclass(frozen=True)
class Contents:
    """
    Attributes:
        columns: tokens read as the model counts them, padding included.
        seen, updates: of each row: real tokens read, and how often it has forgotten.
        counts: slots of each kv head, `counts[layer][row][head]`.
        others: plain values of layers of another kind, by layer.
    """

    columns: int
    seen: list[int]
    updates: list[int]
    counts: dict[str, list[list[int]]]
    others: dict[str, dict[str, Any]]
    tensors: dict[str, Tensor]

    def header(self) -> dict[str, Any]:
        """All but the tensors."""
        return {name: value for name, value in vars(self).items() if name != "tensors"}


def taken(cache: MemoryCache, plan: Plan) -> Contents:
    """What a cache holds; its tensors are shared where that is possible.

    Raises:
        ModelError: it is in the middle of a call, or has layers that hold more than tensors and numbers.
    """
    first = layers_of(cache)[0]
    fresh = memory_layers(first.config, (plan,))
    tensors: dict[str, Tensor] = {}
    counts: dict[str, list[list[int]]] = {}
    changed: dict[str, dict[str, Any]] = {}
    for i, layer in enumerate(cache.layers):
        if isinstance(layer, MemoryLayer):
            layer.check_served()
            if _read(layer) != _read(first) or not _same(layer._shown, first._shown):
                raise ModelError("layers that have read the same", "others", "Save a cache between two calls.")
            counts[str(i)] = [sequence.slots() for sequence in layer.sequences]
            for row, sequence in enumerate(layer.sequences):
                tensors |= {f"{i}.{row}.{name}": part for name, part in _slots(sequence).items()}
        else:
            changed[str(i)], parts = others.changes(layer, fresh[i])
            tensors |= {f"{i}.{name}": part for name, part in parts.items()}
    if first._shown is not None and first._read is not None:
        tensors["shown"], tensors["read"] = first._shown, first._read.clone()
    if first.heard is not None:
        tensors["heard.tokens"], tensors["heard.real"] = first.heard
    seen, updates = [s.seen for s in first.sequences], [s.updates for s in first.sequences]
    return Contents(first.columns, seen, updates, counts, changed, tensors)


def _read(layer: MemoryLayer) -> tuple[Any, ...]:
    return layer.columns, [(s.seen, s.updates) for s in layer.sequences]


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _slots(sequence: Sequence) -> dict[str, Tensor]:
    if not sequence.begun:
        raise ModelError("a real token in each row", "a row of padding only", "Save it when every row has begun.")
    store = sequence.store
    used = store.used(store.lanes([sequence.at]))
    keys, values, positions = (tensor[used] for tensor in store.tensors()[:3])
    parts = {"keys": keys, "values": values, "positions": positions, "state": store.state[:, used]}
    if sequence.tail.count and sequence.plan.next_update(sequence.seen) is not None:
        parts["query"], parts["lse"] = joined([sequence.tail])
    if sequence.asking.count:
        parts["asking"], parts["looked"] = joined([sequence.asking])
    return parts


def fill(cache: MemoryCache, held: Contents, devices: list[torch.device]) -> None:
    """Give a fresh cache these contents, to each layer on its device."""
    common = {
        device: {name: held.tensors[name].to(device, copy=True) for name in _COMMON if name in held.tensors}
        for device in set(devices)
    }
    for i, (layer, device) in enumerate(zip(cache.layers, devices, strict=True)):
        if isinstance(layer, MemoryLayer):
            _fill_layer(layer, held, device)
            layer._shown, layer._read = common[device].get("shown"), common[device].get("read")
        else:
            parts = {n.partition(".")[2]: t for n, t in held.tensors.items() if n.partition(".")[0] == str(i)}
            others.fill(layer, held.others[str(i)], parts, device)
    if "heard.tokens" in held.tensors:
        first = common[devices[0]]
        layers_of(cache)[0].heard = first["heard.tokens"], first["heard.real"]


def _fill_layer(layer: MemoryLayer, held: Contents, device: torch.device) -> None:
    layer.columns = held.columns
    rows, plan = held.counts[str(layer.index)], layer.plans[0]
    layer.sequences = [Sequence(plan, row, layer.index, layer.meter) for row in range(len(rows))]
    if not rows:
        return
    names = ("keys", "values", "positions", "state")
    parts = [[held.tensors[f"{layer.index}.{row}.{name}"].to(device) for name in names] for row in range(len(rows))]
    keys, values, positions, states = zip(*parts, strict=True)
    counts, spare = [count for row in rows for count in row], (0, int(pads(device)))
    pools = (
        pad(torch.cat(keys), (0, 0, *spare)),
        pad(torch.cat(values), (0, 0, *spare)),
        pad(torch.cat(positions), spare),
    )
    store = Store(len(rows[0]), counts, list(counts), *pools, pad(torch.cat(states, 1), spare))
    layer.dtype, layer.device, layer.is_initialized = store.keys.dtype, device, True
    for row, one in enumerate(layer.sequences):
        one.seen, one.updates = held.seen[row], held.updates[row]
        one.begin(store, row)
        for queries, asked, sums in ((one.tail, "query", "lse"), (one.asking, "asking", "looked")):
            name = f"{layer.index}.{row}."
            if name + asked in held.tensors:
                query = held.tensors[name + asked].to(device, copy=True)
                nothing = torch.empty(*query.shape[:2], 0)  # files of earlier versions know nothing of some
                hold([queries], query, held.tensors.get(name + sums, nothing).to(device, copy=True))
        one.note()
