"""The ledger: what memories hold in bytes, what a full cache would hold, and what will be held. Others ask here.

What a layer's rows hold is noted as it changes (`sequence.Meter`), which gives the peak; a report counts anew what the
cache really keeps alive.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from namm.errors import ModelError
from namm.memory.layer import MemoryLayer, layers_of
from namm.memory.plan import Plan, Read
from namm.memory.store import SLACK
from namm.selection import Budget


@dataclass(frozen=True)
class MemoryReport:
    """What a cache holds.

    Attributes:
        kept: slots held, `kept[layer][row][kv_head]`; empty for layers with a cache of their own kind.
        bytes_held: bytes of every storage the cache keeps alive, the policy's state included.
        bytes_full: bytes a full cache would hold for the same tokens, padding included.
        peak_bytes: the most that was held at any time, one layer's compaction included.
        tokens_seen: tokens read, as the model counts them.
        updates: times each layer has forgotten, summed over rows; `updates[layer]`.
    """

    kept: list[list[list[int]]]
    bytes_held: int
    bytes_full: int
    peak_bytes: int
    tokens_seen: int
    updates: list[int]

    @property
    def slots(self) -> int:
        """Slots held by all layers, rows and heads together."""
        return sum(count for layer in self.kept for row in layer for count in row)

    @property
    def share(self) -> float:
        """Bytes held over the bytes of a full cache."""
        return self.bytes_held / self.bytes_full if self.bytes_full else 1.0

    def __str__(self) -> str:
        return (
            f"{self.slots:,} slots, {self.bytes_held / 1e6:.1f} MB of {self.bytes_full / 1e6:.1f} MB "
            f"({self.share:.0%}) after {self.tokens_seen:,} tokens"
        )


def report(cache: Cache) -> MemoryReport:
    """What a memory, or a cache of transformers' own, holds now."""
    ours = layers_of(cache)
    for layer in ours:
        layer.check_served()
    held = storage_bytes([tensor for layer in ours for tensor in layer.tensors()])
    others = storage_bytes(_of_another_kind(cache))  # the same with or without a memory
    return MemoryReport(
        kept=[_slots(layer) for layer in cache.layers],
        bytes_held=held + others,
        bytes_full=sum(layer.full_bytes() for layer in ours) + others,
        peak_bytes=max([held, *(layer.meter.peak for layer in ours)]) + others,
        tokens_seen=cache.get_seq_length(),
        updates=[sum(s.updates for s in getattr(layer, "sequences", ())) for layer in cache.layers],
    )


def _slots(layer: Any) -> list[list[int]]:
    if isinstance(layer, MemoryLayer):
        return [sequence.slots() for sequence in layer.sequences]
    if type(layer) is not DynamicLayer or not layer.is_initialized:
        return []
    rows, heads, slots, _ = layer.keys.shape
    return [[slots] * heads for _ in range(rows)]


def _of_another_kind(cache: Cache) -> list[Tensor]:
    return tensors_in([vars(layer) for layer in cache.layers if not isinstance(layer, MemoryLayer)])


def row_bytes(cache: Cache, row: int) -> int:
    """Bytes held for one row by the layers with a memory; by all, if there is none."""
    if ours := layers_of(cache):
        return sum(layer.sequences[row].nbytes() for layer in ours)
    return storage_bytes(_of_another_kind(cache)) // len(cache.layers[0].keys)


@dataclass(frozen=True)
class Footprint:
    """Bytes of a memory, over all layers that it manages, between two hops.

    Attributes:
        token: of one more token in every head, its observed state included.
        constant: of the queries that are always held.
        full: of one more token in a cache that holds keys and values only.
        asking: of the queries that wait at most until they ask in place; none wait after the last update.
        heads: kv heads of all these layers together.
        layers: how many these are.
    """

    token: int
    constant: int
    full: int
    asking: int
    heads: int
    layers: int

    def most(self, plan: Plan, tokens: int) -> int:
        """The most bytes that a memory of so many tokens holds at any time.

        Between two updates a head holds what the last one left and what came since; a memory that decides by a
        threshold may keep everything. While a layer is compacted, its old and its new slots are there together.
        """
        held = tokens
        if plan.policy.evicts and isinstance(plan.selection, Budget):
            held = min(tokens, plan.selection.target(tokens) + plan.update_interval)
        slots = (held + SLACK) * (1 + 1 / self.layers)
        heard = plan.update_interval * torch.int64.itemsize * 2 if plan.policy.reads_again else 0  # `MemoryLayer.heard`
        return math.ceil(slots * self.token) + self.constant + self.asking + heard


def footprint(plan: Plan, reads: Iterable[Read]) -> Footprint:
    """What a memory with this plan costs, whose layers are given tokens of these shapes."""
    token = constant = full = asking = heads = layers = 0
    policy = plan.policy
    for read in reads:
        dtype, kv_heads = read.key.dtype, read.key.shape[1]
        pair = (read.key.shape[-1] + read.value.shape[-1]) * dtype.itemsize
        state = policy.channels * plan.state_dtype(dtype).itemsize
        full += kv_heads * pair
        token += kv_heads * (pair + state + torch.int32.itemsize)  # with its position
        query = read.query.shape[1] * read.query.shape[-1] * dtype.itemsize
        if policy.channels:  # the queries between two hops, and their log-sum-exp
            constant += policy.overlap * (query + read.query.shape[1] * torch.float32.itemsize)
        if rehearsal := policy.asks_in_place:
            looked = rehearsal.competes * read.query.shape[1] * torch.float32.itemsize
            asking += min(rehearsal.window, plan.update_interval) * (query + looked)
        heads, layers = heads + kv_heads, layers + 1
    return Footprint(token, constant, full, asking, heads, layers)


@dataclass(frozen=True)
class Held:
    """What a memory held when the text had been read, over all layers that it manages.

    Attributes:
        bytes_elsewhere: bytes of layers with a cache of another kind, such as a sliding window, memory or not.
    """

    slots: int
    slots_full: int
    bytes_held: int
    bytes_full: int
    bytes_per_slot: int
    peak_bytes: int | None
    bytes_elsewhere: int = 0


def held_by(cache: Cache, row: int, plan: Plan, costs: Footprint, length: int) -> Held:
    """What a row holds after `length` tokens.

    Raises:
        ModelError: a layer was not updated when it was due.
    """
    layers = layers_of(cache)
    sequences = [layer.sequences[row] for layer in layers]
    if any(sequence.updates != plan.updates(length) for sequence in sequences):
        raise ModelError(
            f"{plan.updates(length)} updates in each layer",
            f"{[s.updates for s in sequences]}",
            "This model bypasses its cache; please report it with the model's name.",
        )
    slots, rows = sum(sum(sequence.slots()) for sequence in sequences), len(layers[0].sequences)
    # a full cache is transformers' own, which holds keys and values only
    held = row_bytes(cache, row) if plan.policy.evicts else costs.full * length
    peak = max(layers[0].meter.peak, held) if rows == 1 and plan.policy.evicts else None
    # of what is in use: right after reading, a sliding window is a view of more than it holds from the next token on
    elsewhere = sum(tensor.nbytes for tensor in _of_another_kind(cache)) // rows
    return Held(slots, costs.heads * length, held, costs.full * length, costs.token, peak, elsewhere)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return tensors_in(list(value.values()))
    return [tensor for part in value for tensor in tensors_in(part)] if isinstance(value, (list, tuple)) else []


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages that `tensors` keep alive."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}.values())
