"""What a memory does in every layer, and who watches it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from namm.memory.rotation import Rotation
from namm.policies.base import MemoryPolicy, View
from namm.selection import Selection


@dataclass(frozen=True)
class Scaling:
    """How a model's attention makes logits of query and key: times `scale`, then soft-capped if `softcap` is set.

    Attributes:
        rotation: of the layer, where queries ask from another position than their own.
    """

    scale: float
    softcap: float | None = None
    rotation: Rotation | None = None


@dataclass(frozen=True)
class Read:
    """What the attention of one layer was given for one row: `[1, head, token, dim]` each."""

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: Scaling

    def without_tokens(self) -> Read:
        """Its shapes and dtypes alone."""
        query, key, value = (t[:, :, :0].clone() for t in (self.query, self.key, self.value))
        return Read(query, key, value, self.scaling)


def _looks_away(*_: Any) -> None: ...


@dataclass(frozen=True)
class Probe:
    """Watches a memory from inside; whatever it does, the memory goes on as it would have.

    Attributes:
        on_attend: told the layer that was given tokens, or a rehearsal of some, and these.
        on_update: told what the policy was shown, and its scores; of heads that hold unequal numbers of slots one by
            one.
    """

    on_attend: Callable[[int, Read], object] = _looks_away
    on_update: Callable[[View, Float[Tensor, "batch kv_head slot"]], object] = _looks_away


@dataclass(frozen=True)
class Plan:
    """What a memory does, the same for all layers.

    Attributes:
        update_interval: tokens between two updates.
        last: if set, one update falls here and none after it: a text is read, and what follows is kept.
        probe: who watches.
    """

    policy: MemoryPolicy
    selection: Selection | None
    update_interval: int
    last: int | None = None
    probe: Probe | None = field(default=None, repr=False, compare=False)

    def next_update(self, seen: int) -> int | None:
        """Tokens read when the next update falls due; None if there will be none."""
        if not self.policy.evicts or (self.last is not None and seen >= self.last):
            return None
        due = (seen // self.update_interval + 1) * self.update_interval
        return due if self.last is None else min(due, self.last)

    @property
    def jointly(self) -> bool:
        """Whether all layers of a model decide together."""
        return self.policy.evicts and getattr(self.selection, "per", None) == "model"

    @property
    def in_pieces(self) -> bool:
        """Whether a model must be called piece by piece, each ending at an update."""
        return self.jointly or (self.policy.evicts and self.policy.reads_again)

    def updates(self, seen: int) -> int:
        """Updates that have fallen due after `seen` tokens."""
        if not self.policy.evicts:
            return 0
        if self.last is None or seen < self.last:
            return seen // self.update_interval
        return math.ceil(self.last / self.update_interval)

    def state_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        half = model_dtype in (torch.float16, torch.bfloat16) and self.policy.half_scale is not None
        return torch.float16 if half else torch.float32
