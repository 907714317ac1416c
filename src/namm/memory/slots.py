"""Ragged storage: the cached tokens of one sequence in one layer.

Heads that hold the same number of slots share one block of tensors, so that they are computed together; after an
update that leaves them unequal, each head has a block of its own. Nothing is padded: bytes held are bytes used, but
for at most `SLACK` free slots while tokens are being appended one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SLACK = 32


@dataclass
class Block:
    """Slots of kv heads `heads`, all with the same count, oldest first. Buffers may hold free slots at the end.

    Attributes:
        count: slots in use.
        keys, values: `[head, capacity, dim]`.
        positions: the token each slot holds, `[head, capacity]`, int32.
        state: what the policy observed, `[head, channel, capacity]`, in its storage dtype.
    """

    heads: slice
    count: int
    keys: Tensor
    values: Tensor
    positions: Tensor
    state: Tensor

    @classmethod
    def empty(cls, keys: Tensor, values: Tensor, channels: int, state_dtype: torch.dtype) -> Block:
        """A block without slots, shaped like `[head, slot, dim]` keys and values."""
        heads = keys.shape[0]
        return cls(
            slice(0, heads),
            0,
            keys.new_empty(heads, 0, keys.shape[-1]),
            values.new_empty(heads, 0, values.shape[-1]),
            torch.empty(heads, 0, dtype=torch.int32, device=keys.device),
            torch.empty(heads, channels, 0, dtype=state_dtype, device=keys.device),
        )

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.keys, self.values, self.positions, self.state

    def used(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Views of the slots in use: keys, values, positions, state."""
        n = self.count
        return self.keys[:, :n], self.values[:, :n], self.positions[:, :n], self.state[:, :, :n]

    def append(self, keys: Tensor, values: Tensor, position: int) -> bool:
        """Add the tokens `position, position + 1, ..` to every head with a zero state; returns whether storage grew."""
        new = keys.shape[1]
        total = self.count + new
        frozen = self.keys.is_inference() and not torch.is_inference_mode_enabled()  # may not be written in place
        grows = total > self.keys.shape[1] or frozen
        if grows:
            self.resize(total if new > 1 else total + SLACK - 1)
        self.keys[:, self.count : total] = keys
        self.values[:, self.count : total] = values
        self.positions[:, self.count : total] = torch.arange(position, position + new, device=keys.device)
        self.state[:, :, self.count : total] = 0
        self.count = total
        return grows

    def resize(self, capacity: int) -> None:
        """Buffers of so many slots, at least those in use."""
        for name, old in zip(("keys", "values", "positions", "state"), self.used(), strict=True):
            axis = 2 if name == "state" else 1
            shape = list(old.shape)
            shape[axis] = capacity
            buffer = old.new_empty(shape)
            buffer.narrow(axis, 0, self.count).copy_(old)
            setattr(self, name, buffer)

    def gather(self, index: Int[Tensor, "head kept"]) -> Block:
        """A new block with the slots of `index`, exactly as large."""
        keys, values, positions, state = self.used()
        return Block(
            self.heads,
            index.shape[1],
            keys.gather(1, index[..., None].expand(-1, -1, keys.shape[-1])),
            values.gather(1, index[..., None].expand(-1, -1, values.shape[-1])),
            positions.gather(1, index),
            state.gather(2, index[:, None].expand(-1, state.shape[1], -1)),
        )

    def split(self) -> list[Block]:
        """One block for each head, sharing this block's memory."""
        first = self.heads.start
        return [
            Block(slice(first + h, first + h + 1), self.count, *(t[h : h + 1] for t in self.tensors()))
            for h in range(self.keys.shape[0])
        ]

    def clone(self) -> Block:
        return Block(self.heads, self.count, *(t.clone() for t in self.tensors()))

    def nbytes(self) -> int:
        return sum(t.untyped_storage().nbytes() for t in self.tensors())


@dataclass
class Tail:
    """The last queries of a sequence, from which attention to what is left can be replayed.

    Attributes:
        query: `[kv_head, group, query, dim]`, in the model's dtype.
        lse: log-sum-exp of their scaled logits over the slots they saw, `[kv_head, group, known]`, float32; of the
            first of them, since those that came one by one are looked at together when a hop is full.
    """

    query: Float[Tensor, "kv_head group query dim"]
    lse: Float[Tensor, "kv_head group known"]

    def extended(self, query: Tensor, lse: Tensor, length: int) -> Tail:
        """With newer queries added, and only the last `length` kept."""
        if query.shape[2] >= length:
            gone = query.shape[2] - length
            return Tail(query[:, :, gone:].clone(), lse[:, :, gone:].clone())
        gone = max(0, self.query.shape[2] + query.shape[2] - length)
        return Tail(torch.cat([self.query[:, :, gone:], query], 2), torch.cat([self.lse[:, :, gone:], lse], 2))

    def clone(self) -> Tail:
        return Tail(self.query.clone(), self.lse.clone())

    def nbytes(self) -> int:
        return self.query.untyped_storage().nbytes() + self.lse.untyped_storage().nbytes()


def compact(blocks: list[Block], kept: Bool[Tensor, "kv_head slot"]) -> list[Block]:
    """Only the slots that stay. `kept` is right-aligned: its last column is every head's newest slot."""
    counts = kept.sum(-1).tolist()
    if sum(counts) == sum(block.count * len(block.keys) for block in blocks):
        return blocks  # nothing was forgotten
    single = len(blocks) == 1
    if single and len(set(counts)) == 1:
        (block,) = blocks
        index = kept.nonzero()[:, 1].view(len(counts), counts[0]) - (kept.shape[1] - block.count)
        return [block.gather(index)]
    heads = [head for block in blocks for head in (block.split() if len(block.keys) > 1 else [block])]
    ragged = []
    for head, mask in zip(heads, kept, strict=True):
        index = mask[mask.shape[0] - head.count :].nonzero().T
        ragged.append(head.gather(index))
    return _joined(ragged) if len(set(counts)) == 1 else ragged


def _joined(heads: list[Block]) -> list[Block]:
    """Heads that have become equal again, in one block."""
    tensors = (torch.cat(parts) for parts in zip(*(h.tensors() for h in heads), strict=True))
    return [Block(slice(0, len(heads)), heads[0].count, *tensors)]


def aligned(parts: Iterator[Tensor], width: int, fill: float) -> Tensor:
    """Stack `[head, slot]` tensors of several blocks, filled at the old end to `width` slots."""
    return torch.cat([torch.nn.functional.pad(part, (width - part.shape[-1], 0), value=fill) for part in parts])
